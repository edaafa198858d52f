"""The verbs that ask a running server, as processes: what they show, what --json promises, and every bad input.

It must not know how the server works.
"""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import typer

from corepool.cli import top, validate
from corepool.cli.infer import decode, encode
from corepool.cli.lease import bounds
from corepool.cli.pictures import best, picture
from corepool.config import preset
from corepool.errors import InputError, UnavailableError
from corepool.zoo import photos
from support.toy_engine import toy_package

LIMIT_S = 300
COMMAND = (sys.executable, "-m", "corepool")


@dataclass
class Place:
    """A running server for tiny, its URL, and a folder with the operators' key and a package."""

    url: str
    folder: Path

    @property
    def admin(self) -> str:
        return f"@{self.folder / 'state' / 'admin.key'}"

    def call(
        self, *words: object, key: str | None = None, stdout: Any = subprocess.PIPE
    ) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("COREPOOL_")}
        env |= {"COREPOOL_URL": self.url, "COREPOOL_KEY": key or self.admin}
        return subprocess.run(
            [*COMMAND, *map(str, words)], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S, env=env
        )

    def report(self, *words: object, key: str | None = None) -> Any:
        done = self.call(*words, "--json", key=key)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)

    def refused(self, *words: object, key: str | None = None) -> str:
        done = self.call(*words, key=key)
        assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
        assert done.stderr.startswith("corepool: error: ")
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""
        return done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("server")
    toy_package(preset("tiny")).save(folder / "m.cpk", preset("tiny"))
    np.savez(folder / "in.npz", input=np.random.default_rng(5).integers(-99, 99, (1, 3, 12, 12)).astype(np.int8))
    ports = (part for name in ("rest", "grpc", "metrics") for part in (f"--{name}-port", "0"))
    command = [*COMMAND, "serve", "--state-dir", str(folder / "state"), "--config", "tiny", *ports]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder)
    assert process.stdout is not None
    try:
        found = None
        while found is None:
            line = process.stdout.readline()
            assert line, (folder / "log").read_text()
            found = re.search(r"REST (http://127\.0\.0\.1:\d+)", line)
        yield Place(found[1], folder)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Traceback" not in (folder / "log").read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)
        process.stdout.close()


@pytest.fixture(scope="module")
def key(place: Place) -> str:
    """The key of tenant team, who has model m."""
    added = place.call("tenant", "add", "team", "--cores", "4")
    assert added.returncode == 0, added.stderr
    made = added.stdout.strip()
    assert re.fullmatch(r"cp_\w+", made)
    loaded = place.report("model", "load", "m", place.folder / "m.cpk", key=made)
    assert loaded == {"name": "m", "versions": ["1"]}
    return made


def test_tenants_from_beginning_to_end(place: Place) -> None:
    made = place.report("tenant", "add", "short", "--cores", "2", "--priority", "3")
    assert made["tenant"]["quota_cores"] == 2
    assert "short" in {row["name"] for row in place.report("tenant", "list")["tenants"]}
    assert place.report("tenant", "quota", "short", "--cores", "3")["quota_cores"] == 3
    assert place.report("tenant", "quota", "short")["priority"] == 3
    second = place.report("tenant", "key", "short", "--label", "ci")
    assert place.report("tenant", "list", key=second["key"])["tenants"][0]["name"] == "short"
    third = place.report("tenant", "key", "short", "--rotate", second["key_id"])
    place.report("tenant", "list", key=third["key"])
    assert "refused the key" in place.refused("tenant", "list", key=second["key"])
    assert third["key_id"] in {row["key_id"] for row in place.report("tenant", "key", "short", "--list")["keys"]}
    place.report("tenant", "key", "short", "--revoke", third["key_id"])
    assert "refused the key" in place.refused("tenant", "list", key=third["key"])
    other = place.report("tenant", "add", "long", "--cores", "1")
    for verb in ("--revoke", "--rotate"):
        assert "of short" in place.refused("tenant", "key", "short", verb, other["key_id"])
    assert place.report("tenant", "list", key=other["key"])["tenants"][0]["name"] == "long", "another's key is gone"
    place.report("tenant", "remove", "long")
    assert place.report("tenant", "remove", "short") == {"name": "short", "removed": True}
    assert "short" in place.refused("tenant", "quota", "short")


def test_models_are_listed_run_and_unloaded(place: Place, key: str) -> None:
    rows = place.report("model", "list", key=key)["models"]
    assert [(row["name"], row["version"], row["state"]) for row in rows] == [("m", "1", "READY")]
    target = place.folder / "out.npz"
    first = place.report("infer", "m", place.folder / "in.npz", "-o", target, key=key)
    assert first["model"] == "m"
    assert first["cycles"] > 0
    with np.load(target) as outputs:
        assert {name: list(outputs[name].shape) for name in outputs} == {
            name: each["shape"] for name, each in first["outputs"].items()
        }
    assert "cores" in place.call("infer", "m", place.folder / "in.npz", key=key).stdout
    place.report("model", "load", "gone", place.folder / "m.cpk", key=key)
    assert place.report("model", "unload", "gone", "--delete", key=key)["deleted"]
    assert "gone" in place.refused("infer", "gone", place.folder / "in.npz", key=key)


def test_leases_from_beginning_to_end(place: Place, key: str) -> None:
    made = place.report("lease", "create", "mine", "--cores", "1..2", "--ttl", "60", key=key)
    assert (made["minimum"], made["maximum"], made["state"]) == (1, 2, "active")
    assert place.report("infer", "m", place.folder / "in.npz", "--lease", "mine", key=key)["lease"] == "mine"
    assert place.report("lease", "heartbeat", "mine", key=key)["expires_in_s"] > 50
    assert len(place.report("lease", "resize", "mine", "--cores", "3", key=key)["cores"]) == 3
    names = {row["name"] for row in place.report("lease", "list", key=key)["leases"]}
    assert "mine" in names
    assert "3 cores" in place.call("lease", "list", key=key).stdout.replace("\n", " ")
    assert place.report("lease", "release", "mine", key=key) == {"name": "mine", "released": True}
    assert "mine" in place.refused("lease", "release", "mine", key=key)
    for endless in ("nan", "inf"):
        assert "number" in place.refused("lease", "create", "x", "--cores", "1", "--ttl", endless, key=key)


def test_operators_act_for_tenants(place: Place, key: str) -> None:
    assert place.report("model", "list", "--tenant", "team")["models"][0]["name"] == "m"
    assert {"tenant": "team", "name": "m"}.items() <= place.report("model", "list")["models"][0].items()
    assert re.search(r"^ team +m +1 +READY", place.call("model", "list").stdout, re.M)
    assert "header" in place.refused("lease", "create", "x", "--cores", "1")


def test_top_shows_cores_banks_and_tenants(place: Place, key: str) -> None:
    place.report("infer", "m", place.folder / "in.npz", key=key)
    status = place.report("top")
    assert len(status["cores"]) == 4
    mine = [each["core"] for each in status["cores"] if each["tenant"] == "team"]
    held = [core for lease in place.report("lease", "list", key=key)["leases"] for core in lease["cores"]]
    assert mine
    assert mine == sorted(held)
    assert sum(each["read_bytes"] for each in status["banks"]) > 0
    shown = place.call("top", "--once").stdout
    assert "team" in shown
    assert re.search(rf"^a +team +{len(mine)} ", shown, re.M)
    assert "operator" in place.refused("top", "--once", key=key)


@pytest.mark.parametrize("width", [60, 80])
def test_top_fits_the_terminal(width: int) -> None:
    from rich.console import Console

    lease = {"tenant": "t" * 60, "name": "n" * 60, "state": "queued", "minimum": 1, "maximum": 16, "position": 3,
             "predicted_wait_s": 12.5}  # fmt: skip
    status = {
        "config": "u200", "ready": True, "leases": [lease] * 9,
        "cores": [{"core": n, "bank": n // 4, "state": "active" if n % 3 else "tainted", "tenant": "t" * 60,
                   "lease": "l", "busy_ratio": 0.5} for n in range(16)],
        "banks": [{"bank": n, "read_bytes": 10**12, "written_bytes": 10**9} for n in range(4)],
        "tenants": [{"tenant": f"{n}" + "t" * 60, "cores": 16, "quota_cores": 16, "pending": 1000, "succeeded": 10**9}
                    for n in range(20)],
        "redeals": [{"ago_s": 3.0, "lease": "x" * 90, "before": 4, "after": 8, "seconds": 0.001}],
    }  # fmt: skip
    for before in (None, status):
        text = io.StringIO()
        Console(file=text, width=width).print(top.render(status, before, 1.0))
        lines = text.getvalue().splitlines()
        assert max(len(line.rstrip()) for line in lines) <= width
        assert len(lines) <= 40
        for word in ("16", "1.0 TB" if before is None else "0 B/s", "! a a", "3 before it"[:1]):
            assert word in text.getvalue()


BAD = {
    "missing file": (["model", "load", "x", "absent.onnx"], "absent.onnx"),
    "folder": (["model", "load", "x", "."], "folder"),
    "missing input": (["infer", "m", "absent.npz"], "absent.npz"),
    "input is a folder": (["infer", "m", "."], "folder"),
    "input is nonsense": (["infer", "m", __file__], "npz"),
    "no folder for output": (["infer", "m", "IN", "-o", "absent/out.npz"], "absent"),
    "unknown model": (["infer", "nobody", "IN"], "nobody"),
    "unknown lease": (["lease", "release", "nobody"], "nobody"),
    "wrong cores": (["lease", "create", "x", "--cores", "many"], "many"),
    "too many cores": (["lease", "create", "x", "--cores", "900"], "900"),
    "odd name": (["infer", "../../x\n", "IN"], "x"),
    "not in the repository": (["model", "load", "nobody"], "nobody"),
    "no package": (["model", "load", "x", __file__], ""),
    "interval": (["top", "--interval", "0"], "interval"),
    "two at once": (["tenant", "key", "team", "--list", "--rotate", "x"], "--rotate"),
    "not an address": (["top", "--url", "ftp://x"], "http"),
    "no such option": (["lease", "list", "--frobnicate"], "frobnicate"),
}


@pytest.mark.parametrize(("words", "told"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line(place: Place, key: str, words: list[str], told: str) -> None:
    assert told in place.refused(*(place.folder / "in.npz" if word == "IN" else word for word in words), key=key)


def test_wrong_missing_and_unreadable_keys(place: Place, tmp_path: Path) -> None:
    assert "refused the key" in place.refused("lease", "list", key="cp_wrong")
    assert "absent" in place.refused("lease", "list", key="@absent")
    assert "key" in place.refused("lease", "list", key="  ")
    assert "characters" in place.refused("lease", "list", key="gr\u00fcn")
    assert "directory" in place.refused("lease", "list", key=f"@{tmp_path}")


def asking_at(listener: socket.socket) -> subprocess.Popen[str]:
    """A command that asks whoever listens there."""
    return subprocess.Popen(
        [*COMMAND, "lease", "list", "--url", f"http://127.0.0.1:{listener.getsockname()[1]}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COREPOOL_KEY": "cp_x"},
    )


def test_no_server_and_no_corepool_server(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    assert "start `corepool serve`" in place.refused("top", "--url", f"http://127.0.0.1:{free}")
    with socket.create_server(("127.0.0.1", 0)) as other:
        with asking_at(other) as asking:
            caller, _ = other.accept()
            with caller:
                caller.recv(1 << 16)
                caller.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
            _, stderr = asking.communicate(timeout=60)
        assert asking.returncode == 2
        assert stderr.count("\n") == 1
        assert "corepool server" in stderr


def test_full_and_closed_stdout(place: Place) -> None:
    with open("/dev/full", "w") as full:
        done = place.call("tenant", "list", stdout=full)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    read, write = os.pipe()
    os.close(read)
    try:
        done = place.call("tenant", "list", "--json", stdout=write)
    finally:
        os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


def test_ctrl_c_ends_quietly(place: Place) -> None:
    """While it waits for a server that does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent, asking_at(silent) as asking:
        caller, _ = silent.accept()
        with caller:
            time.sleep(0.2)
            asking.send_signal(signal.SIGINT)
            time.sleep(0.5)
        stdout, stderr = asking.communicate(timeout=60)
    assert asking.returncode == 130
    assert stdout == ""
    assert "Traceback" not in stderr
    assert stderr.count("\n") <= 1


def test_bounds_of_leases() -> None:
    assert bounds("4") == {"cores": 4}
    assert bounds("2..8") == {"minimum": 2, "maximum": 8}
    for wrong in ("", "..", "2..", "-1", "2...8", "1e3", "\u0664"):
        with pytest.raises(InputError):
            bounds(wrong)


def test_tensors_survive_the_way_there_and_back() -> None:
    arrays = {"a": np.arange(6, dtype=np.int8).reshape(2, 3), "b": np.array([1.5], np.float32)}
    wanted = [{"name": "a", "datatype": "INT8"}, {"name": "b", "datatype": "FP32"}]
    body, size = encode(arrays, wanted, {})
    head = json.loads(body[:size])
    answer = json.dumps({"outputs": head["inputs"]}).encode()
    _, back = decode(answer + body[size:], str(len(answer)))
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    for broken in (b"", b"{", b"[]", b'{"outputs": [{"name": "x", "datatype": "?"}]}'):
        with pytest.raises(UnavailableError):
            decode(broken, None)


def test_a_photo_becomes_what_the_network_was_trained_on(tmp_path: Path) -> None:
    image = photos.load("cat")
    image.save(tmp_path / "cat.png")
    np.testing.assert_array_equal(picture(tmp_path / "cat.png"), photos.preprocess(image))
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    for wrong in ("bad.jpg", "."):
        with pytest.raises(InputError):
            picture(tmp_path / wrong)
    with contextlib.suppress(InputError):
        assert picture(tmp_path / "cat.png", 32).shape == (1, 3, 32, 32)


def test_likeliest_classes() -> None:
    scores = np.zeros(1000)
    scores[[7, 3]] = [9.0, 8.0]
    found = best(scores, 2)
    assert [each["class"] for each in found] == [7, 3]
    assert found[0]["probability"] == pytest.approx(np.exp(9) / np.exp(scores).sum())


def test_validate_attacks_and_cleans_up(place: Place, key: str) -> None:
    """Also beside a tenant that holds cores; the lease that the attack is about may have to queue."""
    found = place.report("validate")
    assert found["passed"]
    assert {row["attack"] for row in found["attacks"]} == {
        "out-of-window", "foreign lease", "runaway stream", "bank flood", "stale key"
    }  # fmt: skip
    assert all(row["passed"] and row["detail"] for row in found["attacks"])
    assert not [row for row in place.report("tenant", "list")["tenants"] if row["name"].startswith("validate-")]
    shown = place.call("validate").stdout
    assert "FAIL" not in shown
    assert "pass" in shown
    assert "operator" in place.refused("validate", key=key)


def test_validate_tells_of_an_attack_that_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {
        "device": "one",
        "attacks": [{"attack": "bank flood", "passed": False, "detail": "its neighbour took 9 cycles"}],
    }
    monkeypatch.setattr(validate, "_as_tenants", lambda client: [])
    monkeypatch.setattr(validate.Client, "ask", lambda *_: bad)
    with pytest.raises(typer.Exit) as ended:
        validate.command(url="http://127.0.0.1:1", key="cp_x", json=True)
    assert ended.value.exit_code == 1


def test_a_request_leaves_a_trace(place: Place, key: str) -> None:
    headers = {"authorization": f"Bearer {key}", "x-request-id": "look-at-me"}
    tensor = {"name": "input", "datatype": "INT8", "shape": [1, 3, 12, 12], "data": [1] * 432}
    with httpx.Client(base_url=place.url, headers=headers, timeout=LIMIT_S, trust_env=False) as client:
        assert client.post("/v2/models/m/infer", json={"inputs": [tensor]}).status_code == 200
        trace = client.get("/v2/corepool/traces/look-at-me")
        assert trace.status_code == 200
        assert client.get("/v2/corepool/traces/other").status_code == 404
    assert {"infer m", "compute"} <= {each["name"] for each in trace.json()["traceEvents"]}
