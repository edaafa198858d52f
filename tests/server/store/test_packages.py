"""Package files are whole or not there, and wrong ones are set aside.

It must not know what packages hold.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from corepool.errors import NotFoundError, PackageError, RequestError, StorageFullError, StoreError
from corepool.server.store import Packages
from corepool.server.store import packages as module

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    return Packages(tmp_path / "packages", tmp_path / "quarantine")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.cpk"
    path.write_bytes(CONTENT)
    return path


def test_a_package_comes_back(packages: Packages, source: Path) -> None:
    assert packages.add(source) == SHA256
    assert packages.add(source) == SHA256
    assert packages.check(SHA256).read_bytes() == CONTENT
    assert [path.name for path in packages.folder.iterdir()] == [SHA256 + ".cpk"]


@pytest.mark.parametrize("how", ["bit", "cut", "swapped"])
def test_a_wrong_package_is_set_aside(packages: Packages, source: Path, how: str) -> None:
    path = packages.path(packages.add(source))
    wrong = {"bit": b"\x01" + CONTENT[1:], "cut": CONTENT[:-1], "swapped": b"another package"}[how]
    path.write_bytes(wrong)
    with pytest.raises(PackageError, match="quarantine"):
        packages.check(SHA256)
    assert (packages.quarantine / path.name).read_bytes() == wrong
    with pytest.raises(NotFoundError, match="hand it in again"):
        packages.check(SHA256)
    packages.add(source)
    assert packages.check(SHA256) == path


def test_adding_mends_a_wrong_one(packages: Packages, source: Path) -> None:
    path = packages.path(packages.add(source))
    path.write_bytes(b"wrong")
    packages.add(source)
    assert packages.check(SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "x\0"])
def test_names_are_hashes_and_nothing_else(packages: Packages, name: str) -> None:
    with pytest.raises(RequestError):
        packages.check(name)


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_sources_that_cannot_be_read(packages: Packages, tmp_path: Path, what: str) -> None:
    source = tmp_path / what
    if what == "folder":
        source.mkdir()
    with pytest.raises(RequestError) as caught:
        packages.add(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("number", "error"), [(28, StorageFullError), (122, StorageFullError), (5, StoreError)])
@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_failing_disk_leaves_nothing(
    packages: Packages, source: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception], call: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(module.os, "fsync", fail)
        else:
            patch.setattr(module.shutil, "copyfileobj", fail)
        with pytest.raises(error):
            packages.add(source)
    names = [path.name for path in packages.folder.iterdir()]
    assert names in ([], [SHA256 + ".cpk"])
    if names:
        packages.check(SHA256)
    assert packages.add(source) == SHA256


def test_copies_cut_short_by_a_crash_are_removed(packages: Packages, source: Path, tmp_path: Path) -> None:
    packages.add(source)
    (packages.folder / f".{SHA256}.cpk.1.ab.tmp").write_bytes(b"half")
    again = Packages(packages.folder, tmp_path / "quarantine")
    assert [path.name for path in again.folder.iterdir()] == [SHA256 + ".cpk"]


def test_sweeping_keeps_what_is_used(packages: Packages, source: Path, tmp_path: Path) -> None:
    packages.add(source)
    (tmp_path / "other").write_bytes(b"other")
    other = packages.add(tmp_path / "other")
    assert packages.sweep({other}) == 1
    assert packages.check(other).read_bytes() == b"other"
    with pytest.raises(NotFoundError):
        packages.check(SHA256)
