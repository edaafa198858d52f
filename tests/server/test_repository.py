"""Folders of models, uploads and compilations: what is found, what is refused, what is left behind."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from corepool.errors import ModelError, NotFoundError, RequestError, TooLargeError, TooManyRequestsError
from corepool.server.compilations import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Compilations
from corepool.server.compile_process import Job, Progress
from corepool.server.repository import ModelConfig, ModelFolder, Source, read_config
from corepool.server.settings import Compilation
from corepool.server.uploads import Uploads


def put(root: Path, *paths: str, data: bytes = b"x") -> None:
    for each in paths:
        (root / each).parent.mkdir(parents=True, exist_ok=True)
        (root / each).write_bytes(data)


def test_models_and_versions_are_found(tmp_path: Path) -> None:
    put(tmp_path, "a/1/model.onnx", "a/10/model.cpk", "a/9/model.onnx", "b/3/model.cpk", "b/3/calibration.npz")
    put(
        tmp_path,
        "c/notes.txt",
        "d/0/model.onnx",
        "d/01/model.onnx",
        "d/x/model.onnx",
        ".hidden/1/model.onnx",
        "e/1/m.onnx",
    )
    folder = ModelFolder(tmp_path)
    assert folder.names() == ["a", "b"]
    assert list(folder.sources("a")) == ["1", "9", "10"]
    assert [each.version for each in folder.chosen("a")] == ["10"]
    assert [each.version for each in folder.chosen("a", ModelConfig(versions=None))] == ["1", "9", "10"]
    assert [each.version for each in folder.chosen("a", ModelConfig(versions=("9", "1")))] == ["9", "1"]
    assert folder.sources("b")["3"].calibration == tmp_path / "b/3/calibration.npz"
    for name in ("..", "../x", "a/1", "", "a\0", "é", "-a"):
        assert folder.sources(name) == {}
    assert ModelFolder(tmp_path / "absent").names() == []


def test_links_and_special_files_are_no_models(tmp_path: Path) -> None:
    put(tmp_path, "secret.onnx")
    for name in ("a/1", "b/1"):
        (tmp_path / "repo" / name).mkdir(parents=True)
    (tmp_path / "repo/a/1/model.onnx").symlink_to(tmp_path / "secret.onnx")
    os.mkfifo(tmp_path / "repo/b/1/model.onnx")
    put(tmp_path, "repo/c/1/model.onnx")
    (tmp_path / "repo/c/1/calibration.npz").symlink_to(tmp_path / "secret.onnx")
    folder = ModelFolder(tmp_path / "repo")
    assert folder.names() == ["c"]
    assert folder.sources("c")["1"].calibration is None


def test_a_configuration_is_read_and_one_that_is_absent_inferred(tmp_path: Path) -> None:
    put(tmp_path, "a/1/model.onnx", "a/2/model.onnx", "a/data/x.npz")
    folder = ModelFolder(tmp_path)
    assert folder.config("a") == ModelConfig()
    put(tmp_path, "a/config.yaml", data=b"name: a\nversions: [1, 2]\ncalibration: data\n")
    assert folder.config("a") == ModelConfig(("1", "2"), "data")
    assert [each.version for each in folder.chosen("a")] == ["1", "2"]
    assert folder.sources("a")["1"].calibration == tmp_path / "a/data"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour: red", "colour"),
        ("versions: some", "versions"),
        ("versions: [0]", "versions"),
        ("versions: [x]", "versions"),
        ("calibration: ../secret", "calibration"),
        ("calibration: /etc/passwd", "calibration"),
        ("calibration: 7", "calibration"),
        ("- a\n- b", "table"),
        ("a: [", "YAML"),
        ("a: &x [1]\nb: [*x, *x]", "anchors"),
        ("!!python/object/apply:os.system ['true']", "YAML"),
        ("\x00", "YAML"),
        ("x" * 70_000, "bytes"),
    ],
    ids=lambda each: each[:20],
)
def test_wrong_configurations_name_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    put(tmp_path, "a/1/model.onnx")
    put(tmp_path, "a/config.yaml", data=text.encode())
    with pytest.raises(RequestError, match=said) as caught:
        ModelFolder(tmp_path).chosen("a")
    assert "a/config.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_versions_that_are_wanted_must_be_there(tmp_path: Path) -> None:
    put(tmp_path, "a/1/model.onnx")
    with pytest.raises(RequestError, match="no version 4"):
        ModelFolder(tmp_path).chosen("a", read_config({"versions": [4]}, "here"))


async def body(*blocks: bytes) -> AsyncIterator[bytes]:
    for each in blocks:
        yield each


def left(root: Path) -> list[str]:
    return sorted(str(each.relative_to(root)) for each in root.rglob("*") if each.is_file())


def test_uploads_are_put_in_place_whole_or_not_at_all(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, stored_bytes=1000)

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise RequestError("the client left")

    async def work() -> None:
        assert await uploads.put_model("t", "m", "1", body(b"\x08\x07", b"rest")) == tmp_path / "t/m/1/model.onnx"
        with pytest.raises(RequestError, match="left"):
            await uploads.put_model("t", "m", "1", broken())
        with pytest.raises(RequestError, match="empty"):
            await uploads.put_model("t", "m", "2", body(b""))
        with pytest.raises(RequestError, match=r"\.npz"):
            await uploads.put_calibration("t", "m", "1", body(b"no zip"))
        with pytest.raises(TooLargeError, match="1000 bytes"):
            await uploads.put_model("t", "big", "1", body(*[b"x" * 100] * 20))
        assert left(tmp_path) == ["t/m/1/model.onnx"]
        assert (tmp_path / "t/m/1/model.onnx").read_bytes() == b"\x08\x07rest"
        await uploads.put_model("t", "m", "1", body(b"COREPOOL", b"..."))
        await uploads.put_calibration("t", "m", "1", body(b"PK\x03\x04"))
        assert left(tmp_path) == ["t/m/1/calibration.npz", "t/m/1/model.cpk"]
        assert uploads.used("t") == 15
        assert uploads.used("u") == 0

    asyncio.run(work())
    uploads.remove("t", "m", "1")
    assert left(tmp_path) == []
    with pytest.raises(NotFoundError):
        uploads.remove("t", "m")


@pytest.mark.parametrize("name", ["..", "a/b", "", ".x", "a\0b", "x" * 129, "a\n"])
def test_names_that_are_no_names_are_refused(tmp_path: Path, name: str) -> None:
    uploads = Uploads(tmp_path, 1000)
    with pytest.raises(RequestError):
        asyncio.run(uploads.put_model("t", name, "1", body(b"x")))
    with pytest.raises(RequestError):
        asyncio.run(uploads.put_model("t", "m", name, body(b"x")))
    assert left(tmp_path) == []


class Steps:
    """A compiler that goes on when it is told to, and writes what it was given."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.running = self.most = 0

    async def __call__(
        self, job: Job, limits: Compilation, progress: Progress, warn: Callable[..., None]
    ) -> dict[str, Any]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            progress("half", 0.5)
            progress("back", 0.2)
            await self.go.wait()
            if job.source.name == "bad.onnx":
                raise ModelError("model.onnx: is no good")
            job.output.write_bytes(b"made")
            return {"layers": 1}
        finally:
            self.running -= 1


def test_compilations_queue_tell_and_end(tmp_path: Path) -> None:
    async def work() -> None:
        steps = Steps()
        limits = Compilation(parallel=2, waiting=3, kept=4)
        queue = Compilations(tmp_path / "work", "tiny", limits, steps, lambda *a, **k: None)

        def finish(made: Path) -> Path:
            return Path(shutil.copy(made, tmp_path / "package"))

        def source(name: str, file: str = "model.onnx") -> Source:
            return Source(name, "1", tmp_path / file, None)

        first = queue.start("t", source("a"), finish)
        assert queue.start("t", source("a"), finish) is first
        bad = queue.start("t", source("b", "bad.onnx"), finish)
        third = queue.start("t", source("c"), finish)
        with pytest.raises(TooManyRequestsError):
            queue.start("t", source("d"), finish)
        other = queue.start("u", source("a"), finish)
        await asyncio.sleep(0.05)
        assert [each.state for each in (first, bad, third, other)] == [RUNNING, RUNNING, QUEUED, QUEUED]
        assert (first.stage, first.progress) == ("back", 0.5)
        assert queue.all("u") == [other]
        with pytest.raises(NotFoundError):
            queue.get("u", first.id)
        queue.cancel("t", third.id)
        steps.go.set()
        assert (await queue.wait(first)).read_bytes() == b"made"
        with pytest.raises(ModelError, match="no good"):
            await queue.wait(bad)
        await queue.wait(other)
        assert [each.state for each in (first, bad, third, other)] == [DONE, FAILED, CANCELLED, DONE]
        assert steps.most == 2
        assert list((tmp_path / "work").iterdir()) == []
        for number in range(6):
            await queue.wait(queue.start("t", source(f"n{number}"), finish))
        assert len(queue.all(None)) <= limits.kept + 1
        steps.go.clear()
        running = queue.start("t", source("z"), finish)
        await asyncio.sleep(0.05)
        await queue.close()
        assert running.state == CANCELLED
        assert steps.running == 0

    asyncio.run(work())
