"""Compiling what nobody vouches for: limits hold, errors are the compiler's own, nothing is left behind."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from corepool import zoo
from corepool.compiler.model import ModelPackage
from corepool.compiler.static.hostpart import complaint
from corepool.config import preset
from corepool.errors import CalibrationError, ConfigMismatchError, CorepoolError, ModelError, PackageError
from corepool.server import compile_process
from corepool.server.compile_process import Job, compile_model
from corepool.server.settings import Compilation

CASES = Path(__file__).resolve().parents[1] / "cases"


def compiled(source: Path, folder: Path, limits: Compilation | None = None, config: str = "tiny") -> dict[str, Any]:
    """Compile a file; returns what was made and the stages that were told."""
    folder.mkdir(exist_ok=True)
    calibration = source.parent / "calibration.npz"
    job = Job(source, calibration if calibration.exists() else None, config, folder / "package.cpk")
    stages: list[tuple[str, float]] = []
    work = compile_model(job, limits or Compilation(), lambda *step: stages.append(step), said)
    made = asyncio.run(work)
    return {**made, "stages": stages}


def said(*what: Any, **more: Any) -> None:
    """What an operator would find in the log, for whoever looks into a failure."""
    sys.stderr.write(f"{what} {more}\n")


def put(folder: Path, data: bytes, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_a_model_is_compiled_and_progress_told(tmp_path: Path) -> None:
    made = compiled(CASES / "groups" / "model.onnx", tmp_path / "out")
    assert ModelPackage.open(tmp_path / "out" / "package.cpk", preset("tiny")).meta["layers"]
    shares = [share for _, share in made["stages"]]
    assert len(shares) > 3
    assert shares == sorted(shares)
    # A package goes through the same process, and comes out as it went in.
    package = (tmp_path / "out" / "package.cpk").read_bytes()
    compiled(put(tmp_path, package, "model.cpk"), tmp_path / "again")
    assert (tmp_path / "again" / "package.cpk").read_bytes() == package
    with pytest.raises(ConfigMismatchError, match="u200"):
        compiled(tmp_path / "model.cpk", tmp_path / "other", config="u200")
    broken = bytearray(package)
    broken[len(broken) // 2] ^= 1
    with pytest.raises(PackageError, match=r"model\.cpk"):
        compiled(put(tmp_path, bytes(broken), "model.cpk"), tmp_path / "broken")


BAD = {
    "empty": b"",
    "text": b"hello",
    "cut": (CASES / "groups" / "model.onnx").read_bytes()[:-7],
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_broken_files_are_refused_in_the_compilers_words(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ModelError) as caught:
        compiled(put(tmp_path, data), tmp_path / "out")
    assert str(caught.value).startswith("model.onnx")
    assert str(tmp_path) not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_float_models_without_calibration_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"calibration data.*PUT .*/calibration"):
        compiled(put(tmp_path, (CASES / "classifier" / "model.onnx").read_bytes()), tmp_path / "out")


def test_data_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    secret = put(tmp_path, np.zeros(9, np.float32).tobytes(), "secret")
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 1, 3, 3], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../secret")
    shape = [1, 1, 8, 8]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match="secret"):
        compiled(put(tmp_path / "model", model.SerializeToString()), tmp_path / "out")
    assert secret.exists()


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"wall_s": 0.2}, "0.2 seconds"),
        ({"memory_bytes": 300 << 20}, "memory"),
        ({"file_bytes": 4096}, "too large"),
    ],
    ids=str,
)
def test_limits_end_a_compilation_with_a_clear_word(tmp_path: Path, limits: dict[str, Any], said: str) -> None:
    begin = time.monotonic()
    with pytest.raises(CorepoolError, match=said):
        compiled(CASES / "groups" / "model.onnx", tmp_path / "out", Compilation(**limits))
    assert time.monotonic() - begin < 60


def test_processor_time_ends_a_compilation_with_a_clear_word(tmp_path: Path) -> None:
    zoo.write("mobilenet_v1", tmp_path / "model.onnx")  # takes several seconds
    with pytest.raises(CorepoolError, match="processor time"):
        compiled(tmp_path / "model.onnx", tmp_path / "out", Compilation(cpu_s=1))


def test_cancelling_kills_the_process_and_what_it_started(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    job = Job(CASES / "groups" / "model.onnx", None, "tiny", tmp_path / "out" / "package.cpk")

    async def begin_and_cancel() -> list[psutil.Process]:
        task = asyncio.create_task(compile_model(job, Compilation(), lambda *_: None, lambda *a, **k: None))
        children: list[psutil.Process] = []
        while not children:
            await asyncio.sleep(0.02)
            children = psutil.Process().children(recursive=True)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return children

    children = asyncio.run(begin_and_cancel())
    assert children
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in children)


CONFINED = """
import ctypes, errno, json, os, resource, socket, sys
from corepool.server.sandbox import Bounds, confine
barriers = confine(Bounds(cpu_s=30, memory_bytes=1 << 30, file_bytes=1 << 16, files=40))
libc = ctypes.CDLL(None, use_errno=True)
native = libc.socket(2, 1, 0), errno.errorcode.get(ctypes.get_errno())
def outcome(call):
    try:
        call()
    except BaseException as error:
        return type(error).__name__
    return "done"
def write():
    with open(sys.argv[1], "wb", buffering=0) as file:
        for _ in range(64):
            file.write(bytes(4096))
print(json.dumps({
    "barriers": barriers, "native": native, "socket": outcome(socket.socket),
    "name": outcome(lambda: socket.getaddrinfo("localhost", 80)),
    "memory": outcome(lambda: bytearray(2 << 30)), "file": outcome(write),
    "files": outcome(lambda: [open("/dev/null") for _ in range(60)]),
}))
"""


def test_a_confined_process_can_do_no_more_than_it_should(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", CONFINED, str(tmp_path / "f")], capture_output=True, text=True, check=True, timeout=60
    )
    seen = json.loads(run.stdout)
    assert seen["memory"] == "MemoryError"
    assert seen["file"] == seen["files"] == "OSError"
    assert seen["socket"] == seen["name"] == "PermissionError"
    assert "audit hook" in seen["barriers"]
    if "seccomp" in seen["barriers"]:
        assert seen["native"] == [-1, "EPERM"]
    assert (tmp_path / "f").stat().st_size <= 1 << 16


def test_it_sees_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREPOOL_DATABASE_URL", "postgresql://u:secret@h/d")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert "secret" not in str(compile_process._environment())


def test_host_parts_of_foreign_packages_hold_known_operators_only() -> None:
    def model(op: str, **more: Any) -> bytes:
        graph = helper.make_graph(
            [helper.make_node(op, ["x"], ["y"], **more)],
            "host",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        )
        made: onnx.ModelProto = helper.make_model(graph)
        return bytes(made.SerializeToString())

    assert complaint(model("Softmax"), 10) is None
    assert "Loop" in str(complaint(model("Loop"), 10))
    assert "Softmax" in str(complaint(model("Softmax", domain="evil"), 10))
    assert complaint(b"\xff\xff", 10) is not None


def test_a_compiler_that_ends_at_once_is_an_error_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import uvloop

    heard: list[Any] = []
    true = asyncio.create_subprocess_exec

    async def ended(*command: Any, **more: Any) -> Any:
        process = await true(*command, **more)
        await process.wait()
        await asyncio.sleep(0.1)
        return process

    monkeypatch.setattr(compile_process, "CHILD", "corepool.no_such_module")
    monkeypatch.setattr(asyncio, "create_subprocess_exec", ended)
    job = Job(CASES / "groups" / "model.onnx", None, "tiny", tmp_path / "package.cpk")
    work = compile_model(job, Compilation(), lambda *step: None, lambda *what, **more: heard.append(more))
    with (
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        pytest.raises(ModelError, match="ended with code"),
    ):
        runner.run(work)
    assert "no_such_module" in heard[0]["words"]
