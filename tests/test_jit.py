"""Compiled code is cached for exactly the source that it was made from."""

import subprocess
import sys
from pathlib import Path

import pytest
from numba.core import caching

import corepool
import corepool.jit

ASK = "import corepool.jit, numba; print(numba.config.CACHE_DIR)"


def cache_folder(source: Path, home: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={"PYTHONPATH": str(source), "HOME": str(home), "PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def copy_of_the_package(tmp_path: Path) -> Path:
    """A small copy: the digest covers what stands below jit.py."""
    package = tmp_path / "source" / "corepool"
    (package / "inner").mkdir(parents=True)
    root = Path(corepool.__file__).parent
    for name in ("__init__.py", "jit.py"):
        (package / name).write_text((root / name).read_text())
    (package / "inner" / "kernel.py").write_text("VALUE = 1  # njit\n")
    return package


def test_a_change_anywhere_in_the_source_gives_another_folder(tmp_path):
    package = copy_of_the_package(tmp_path)
    first = cache_folder(package.parent, tmp_path)
    assert first.startswith(str(tmp_path / ".cache" / "corepool"))
    assert cache_folder(package.parent, tmp_path) == first
    (package / "inner" / "kernel.py").write_text("VALUE = 2  # njit\n")
    assert cache_folder(package.parent, tmp_path) != first


def test_the_users_own_choice_is_kept(tmp_path):
    package = copy_of_the_package(tmp_path)
    assert cache_folder(package.parent, tmp_path, NUMBA_CACHE_DIR="/somewhere") == "/somewhere"
    assert cache_folder(package.parent, tmp_path, XDG_CACHE_HOME=str(tmp_path / "x")).startswith(str(tmp_path / "x"))


@pytest.mark.parametrize("late", [False, True])
def test_two_processes_that_compile_one_function_get_their_own_code(tmp_path: Path, late: bool) -> None:
    """The second has looked at the index before the first wrote it; the first may write its code last of all."""
    first, second = (caching.IndexDataCacheFile(str(tmp_path), "f", "stamp") for _ in range(2))
    waiting: list[tuple[str, object]] = []
    if late:
        first._save_data = lambda name, data: waiting.append((name, data))
    second._load_index = dict
    first.save("int", "code for int")
    second.save("float", "code for float")
    for name, data in waiting:
        caching.IndexDataCacheFile._save_data(first, name, data)
    anew = caching.IndexDataCacheFile(str(tmp_path), "f", "stamp")
    assert anew.load("float") == "code for float"
    assert anew.load("int") in (None, "code for int")
