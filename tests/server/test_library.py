"""What a tenant uploads in the place of something sound: it counts once it has been compiled, and not before."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from corepool.errors import ModelError, NotFoundError, RequestError
from corepool.server.api import Identity, ModelInfo, ModelState, Role
from corepool.server.compilations import Compilations
from corepool.server.compile_process import Job, Progress
from corepool.server.library import Library
from corepool.server.settings import Compilation
from corepool.server.uploads import ASIDE, Uploads

ANN = Identity(Role.TENANT, "ann", "k")
NPZ = b"PK\x03\x04"


class Compiler:
    """Makes the package "<model>+<calibration>"; refuses what has "bad" in it. ``go`` lets tests hold it back."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.runs = 0

    async def __call__(
        self, job: Job, limits: Compilation, progress: Progress, warn: Callable[..., None]
    ) -> dict[str, Any]:
        self.runs += 1
        await self.go.wait()
        made = job.source.read_bytes() + b"+" + (job.calibration.read_bytes() if job.calibration else b"")
        if b"bad" in made:
            raise ModelError(f"{job.source.name}: is no good")
        job.output.write_bytes(made)
        return {}


class Loaded:
    """Remembers the packages that it was given."""

    def __init__(self) -> None:
        self.packages: dict[tuple[str, str], bytes] = {}

    def load_package(self, who: Identity, name: str, version: str, package_path: str) -> ModelInfo:
        self.packages[name, version] = Path(package_path).read_bytes()
        return ModelInfo(name, version, (version,), ModelState.READY)

    def unload(self, who: Identity, name: str, version: str | None = None) -> None:
        raise NotFoundError(name)


class World:
    def __init__(self, folder: Path) -> None:
        self.compiler, self.loaded = Compiler(), Loaded()
        self.uploads = Uploads(folder / "uploads", 1 << 20)
        compilations = Compilations(folder / "work", "tiny", Compilation(), self.compiler, lambda *a, **k: None)
        self.library = Library(self.uploads, None, folder / "built", compilations, self.loaded, "tiny")
        self.folder = folder / "uploads" / "ann" / "m" / "1"

    async def upload(self, data: bytes, load: bool = True) -> str | None:
        """Upload a model and wait; what was wrong with it."""
        made = await self.library.upload(ANN, "m", "1", body(data), load)
        try:
            await self.library.compilations.wait(made)
        except ModelError as error:
            return str(error)
        return None

    async def calibrate(self, data: bytes) -> None:
        await self.uploads.put_calibration("ann", "m", "1", body(NPZ + data))

    async def reload(self) -> bytes:
        """What is loaded if the model is asked for."""
        self.loaded.packages.clear()
        await self.library.load(ANN, "m", {})
        return self.loaded.packages["m", "1"]

    def files(self) -> dict[str, bytes]:
        return {each.name: each.read_bytes() for each in self.folder.glob("*") if each.suffix in (".onnx", ".npz")}


async def body(data: bytes) -> AsyncIterator[bytes]:
    yield data


def test_a_broken_upload_leaves_what_was_there(tmp_path: Path) -> None:
    async def work() -> None:
        world = World(tmp_path)
        await world.calibrate(b"c1")
        assert await world.upload(b"one") is None
        good = {"model.onnx": b"one", "calibration.npz": NPZ + b"c1"}
        assert world.files() == good
        for wrong in (b"bad", b"bad again", b"COREPOOL bad"):
            assert "no good" in str(await world.upload(wrong))
            assert world.files() == good
            assert not (world.folder / "model.cpk").exists()
            assert not (world.folder / ASIDE).exists()
        (row,) = world.library.index(ANN)
        assert row.reason.startswith("not loaded; the latest upload was not compiled")
        runs = world.compiler.runs
        assert await world.reload() == b"one+" + NPZ + b"c1"
        assert world.compiler.runs == runs, "it was compiled already"

        await world.calibrate(b"bad")  # wrong calibration data go with the model that came after them
        assert await world.upload(b"two") is not None
        assert world.files() == good

        await world.calibrate(b"c2")
        assert await world.upload(b"two") is None
        assert world.files() == {"model.onnx": b"two", "calibration.npz": NPZ + b"c2"}
        assert not (world.folder / ASIDE).exists()
        assert await world.upload(b"COREPOOL three") is None
        assert "no good" in str(await world.upload(b"bad"))
        assert (world.folder / "model.cpk").read_bytes() == b"COREPOOL three"
        assert not (world.folder / "model.onnx").exists()

    asyncio.run(work())


def test_a_first_upload_stays_even_if_it_cannot_be_compiled(tmp_path: Path) -> None:
    async def work() -> None:
        world = World(tmp_path)
        assert await world.upload(b"bad") is not None
        assert world.files() == {"model.onnx": b"bad"}
        (row,) = world.library.index(ANN)
        assert row.reason == "not compiled: model.onnx: is no good"

    asyncio.run(work())


def test_an_upload_that_replaces_one_under_way_is_not_undone_with_it(tmp_path: Path) -> None:
    async def work() -> None:
        world = World(tmp_path)
        assert await world.upload(b"one") is None
        world.compiler.go.clear()
        first = await world.library.upload(ANN, "m", "1", body(b"bad"), True)
        second = asyncio.create_task(world.upload(b"two"))
        await asyncio.sleep(0.05)
        world.compiler.go.set()
        assert await second is None
        assert first.state == "cancelled"
        assert world.files() == {"model.onnx": b"two"}
        assert await world.reload() == b"two+"

    asyncio.run(work())


@pytest.mark.parametrize("done", range(3))
def test_restoring_may_be_repeated_after_a_crash(tmp_path: Path, done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        world = World(tmp_path)
        await world.calibrate(b"c1")
        assert await world.upload(b"one") is None
        await world.calibrate(b"bad")
        world.compiler.go.clear()
        await world.library.upload(ANN, "m", "1", body(b"COREPOOL bad"), True)
        await world.library.compilations.close()  # as if the server had ended here
        left = done
        true = Path.replace

        def replace(self: Path, target: Path) -> Path:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return true(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", replace)
            try:
                world.uploads.restore(world.folder)
            except KeyboardInterrupt:
                assert done < 2
        world.uploads.restore(world.folder)
        assert world.files() == {"model.onnx": b"one", "calibration.npz": NPZ + b"c1"}
        assert not (world.folder / "model.cpk").exists()

    asyncio.run(work())


def test_files_that_come_with_loading_are_stored_all_or_none(tmp_path: Path) -> None:
    async def work() -> None:
        world = World(tmp_path)
        assert await world.upload(b"one") is None
        for wrong in ("file:1/weights.bin", "file:x/model.onnx"):
            with pytest.raises(RequestError):
                await world.library.load(ANN, "m", {"file:1/model.onnx": b"two", wrong: b"three"})
            with pytest.raises(RequestError):
                await world.library.load(ANN, "m", {"file:1/model.onnx": b"two", "file:1/calibration.npz": "!"})
        assert world.files() == {"model.onnx": b"one"}
        with pytest.raises(ModelError):
            await world.library.load(ANN, "m", {"file:1/model.onnx": base64.b64encode(b"bad").decode()})
        assert world.files() == {"model.onnx": b"one"}
        await world.library.load(ANN, "m", {"file:1/model.onnx": b"two"})
        assert world.loaded.packages["m", "1"] == b"two+"

    asyncio.run(work())
