"""Requests to end, at any moment and whatever the code in between makes of them: the exit code tells, nothing is left.

It must not know what the verbs do.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src"
ROOM_S = 20  # for a busy machine; what is tested would otherwise go on for a minute

VERB = """
import sys, time
from pathlib import Path
from corepool.cli import main, output, signals
from corepool.files import replacing

def busy(seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))

def work(show):
{body}

def command():
    with output.progress("work") as show:
        print("ready", file=sys.stderr, flush=True)
        work(show)
    with replacing(Path("out.bin")) as file:
        file.write(b"done")

main.app.command(name="work")(command)
sys.argv = ["corepool", "work"]
main.main()
"""

BODIES = {
    "progress is told": "for _ in range(6000): show('x', 0.1); time.sleep(0.01)",
    "nothing is told": "busy()",
    "a part swallows it": """
        try: busy()
        except BaseException: pass
        """,
    "a part makes an error of it": """
        try: busy()
        except BaseException: raise SystemError('returned a result with an exception set') from None
        """,
    "a destructor is interrupted": """
        class Thing:
            def __del__(self): busy(3)
        thing = Thing()
        del thing
        busy()
        """,
}


def start(body: str, folder: Path) -> subprocess.Popen[str]:
    code = VERB.format(body=textwrap.indent(textwrap.dedent(body).strip(), "    "))
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | {"PYTHONPATH": str(SRC)}, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    return process


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_request_ends_the_command(tmp_path: Path, body: str, number: signal.Signals, word: str) -> None:
    process = start(body, tmp_path)
    time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=ROOM_S)
    assert (process.returncode, err) == (128 + number, f"corepool: {word}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_second_request_ends_the_process_at_once(tmp_path: Path) -> None:
    process = start("while True:\n    try: busy()\n    except BaseException: pass", tmp_path)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=ROOM_S)
    assert (process.returncode, err) == (-signal.SIGINT, "")


def test_signals_that_the_caller_wants_ignored_stay_ignored(tmp_path: Path) -> None:
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start("busy(1)", tmp_path)
    finally:
        signal.signal(signal.SIGINT, earlier)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=ROOM_S)
    assert (process.returncode, err) == (0, "")
    assert (tmp_path / "out.bin").read_bytes() == b"done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay_s", [1.0, 1.6])
def test_compilation_can_be_interrupted(tmp_path: Path, number: signal.Signals, delay_s: float) -> None:
    env = os.environ | {"PYTHONPATH": str(SRC)}
    corepool = [sys.executable, "-m", "corepool"]
    model, photos = tmp_path / "m.onnx", SRC / "corepool" / "zoo" / "photos"
    subprocess.run([*corepool, "zoo", "mobilenet_v2", "-o", str(model)], env=env, check=True, capture_output=True)
    process = subprocess.Popen(
        [*corepool, "compile", str(model), "-o", str(tmp_path / "m.cpk"), "--calibration", str(photos)],
        env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(delay_s)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.count("\n")) == (128 + number, "", 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]
