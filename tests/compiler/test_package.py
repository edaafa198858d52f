"""The package container: round trips, and that no damage, however clever, gets past it.

It must not know what compilers put into packages.
"""

import dataclasses
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from corepool.compiler import package
from corepool.compiler.package import ENTRY, HEAD, HEAD_CRC_OFFSET, open_package, parse, write
from corepool.config import preset
from corepool.errors import ConfigMismatchError, PackageError

TINY, U200 = preset("tiny"), preset("u200")
DTYPES = ("i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f4", "<f8")

names = st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), min_size=1, max_size=32)
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
contents = st.dictionaries(names, st.binary(max_size=200) | arrays, max_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages")


def sample(folder: Path) -> bytes:
    """A small package with bytes, an array, an empty section and padding of every kind."""
    path = folder / "sample.cpk"
    write(path, {"meta": b'{"a": 1}', "weights": np.arange(70, dtype=np.int8).reshape(7, 10), "tail": b""}, TINY)
    return path.read_bytes()


def seal(data: bytearray) -> bytes:
    """The bytes with head and section checksums made right again, wherever the table can be followed."""
    count = struct.unpack_from("<I", data, 24)[0]
    for at in range(HEAD.size, min(HEAD.size + count * ENTRY.size, len(data) - ENTRY.size + 1), ENTRY.size):
        offset, length = struct.unpack_from("<QQ", data, at + 32)
        if offset + length <= len(data):
            struct.pack_into("<I", data, at + 48, zlib.crc32(data[offset : offset + length]))
    struct.pack_into("<I", data, HEAD_CRC_OFFSET, 0)
    head_length = struct.unpack_from("<I", data, 12)[0]
    struct.pack_into("<I", data, HEAD_CRC_OFFSET, zlib.crc32(data[:head_length]))
    return bytes(data)


@given(contents)
@settings(max_examples=150)
def test_round_trip(folder: Path, sections: dict[str, bytes | np.ndarray]) -> None:
    path = folder / "round.cpk"
    size = write(path, sections, TINY)
    opened = open_package(path, TINY)
    assert opened.size == size == path.stat().st_size
    assert (opened.config_name, opened.fingerprint) == ("tiny", TINY.fingerprint())
    assert set(opened.sections) == set(sections)
    for name, value in sections.items():
        found = opened.sections[name]
        if isinstance(value, bytes):
            assert found == value
            assert opened.raw(name) == value
        else:
            assert isinstance(found, np.ndarray)
            assert (found.dtype, found.shape, found.tobytes()) == (value.dtype, value.shape, value.tobytes())
            assert not found.flags.writeable
    backwards = dict(reversed(sections.items()))
    data = path.read_bytes()
    write(path, backwards, TINY)
    assert path.read_bytes() == data


def test_arrays_are_views_of_the_file_on_64_byte_boundaries(folder: Path) -> None:
    path = folder / "views.cpk"
    big = np.arange(1000, dtype=">i4").reshape(10, 100).T
    write(path, {"a": b"x", "b": big, "c": np.float32(2.5).reshape(())}, U200)
    opened = open_package(path)
    found = opened.array("b")
    assert np.array_equal(found, big)
    assert found.ctypes.data % 64 == 0
    assert not found.flags.owndata
    assert opened.array("c")[()] == 2.5
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1
    with pytest.raises(PackageError, match="no array called 'a'"):
        opened.array("a")
    with pytest.raises(PackageError, match="no bytes called 'b'"):
        opened.raw("b")


def test_every_flipped_bit_is_found(folder: Path) -> None:
    data = sample(folder)
    assert set(parse(data).sections) == {"meta", "weights", "tail"}
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            with pytest.raises(PackageError):
                parse(damaged, TINY)


def test_every_truncation_and_every_addition_is_found(folder: Path) -> None:
    data = sample(folder)
    for size in range(len(data)):
        with pytest.raises(PackageError):
            parse(data[:size])
    for extra in (b"\0", b"\0" * 64, data):
        with pytest.raises(PackageError, match="do not belong to it"):
            parse(data + extra)


edits = st.lists(
    st.tuples(st.integers(0, 30_000), st.sampled_from((1, 2, 4, 8)), st.integers(0, 2**64 - 1)), min_size=1, max_size=4
)


@given(edits, st.booleans())
@settings(max_examples=600)
def test_fuzzed_fields_with_right_checksums_are_refused_or_harmless(
    folder: Path, changes: list[tuple[int, int, int]], small: bool
) -> None:
    data = bytearray(sample(folder))
    table = HEAD.size + 3 * ENTRY.size
    for place, size, value in changes:
        at = min(place % table, len(data) - size)
        number = value % 300 if small else value % (1 << 8 * size)
        data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    try:
        opened = parse(seal(data))
    except PackageError:
        return
    # Whatever was accepted stays within the file: at most 64 sections' worth of views, no more bytes than there are.
    total = sum(len(v) if isinstance(v, bytes) else v.nbytes for v in opened.sections.values())
    assert total <= len(data)


def edit(data: bytes, at: int, form: str, *values: int | bytes) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, *values)
    return seal(changed)


FIRST, SECOND = HEAD.size, HEAD.size + ENTRY.size  # table entries of "meta" (8 bytes) and "tail" (0 bytes)
THIRD = HEAD.size + 2 * ENTRY.size  # "weights" (70 bytes)
WRONG = {
    "magic": (0, "<8s", (b"COREPOOT",), "does not begin with"),
    "format": (8, "<I", (2,), "made by format 2, this corepool reads 1: compile the model again"),
    "count": (24, "<I", (2**32 - 1,), "counts 4294967295 sections"),
    "head length": (12, "<I", (2**31,), "claims a length"),
    "file length": (16, "<Q", (2**63,), "truncated"),
    "fingerprint": (32, "<B", (ord("G"),), "fingerprint"),
    "name of the configuration": (64, "<B", (0,), "configuration's name"),
    "overlap": (SECOND + 32, "<Q", (HEAD.size + 3 * ENTRY.size,), "overlap"),
    "offset beyond the end": (SECOND + 32, "<Q", (2**62,), "overlap or leave a gap"),
    "length that wraps": (THIRD + 40, "<Q", (2**64 - 64,), "beyond the file's end"),
    "out of order": (FIRST, "<4s", (b"zeta",), "out of order"),
    "same name twice": (SECOND, "<4s", (b"meta",), "out of order or there twice"),
    "unprintable name": (FIRST, "<4s", (b"a\nb\n",), "is not a name"),
    "unknown type": (THIRD + 52, "<B", (99,), "unknown type 99"),
    "many dimensions": (THIRD + 53, "<B", (200,), "200 dimensions"),
    "huge shape": (THIRD + 56, "<QQ", (2**60, 2**60), "which is not 70 bytes"),
    "empty but huge shape": (THIRD + 56, "<QQ", (2**63, 0), "which is not 70 bytes"),
    "wider type": (THIRD + 52, "<B", (5,), "which is not 70 bytes"),
    "reserved": (THIRD + 54, "<H", (1,), "reserved"),
    "unused dimension": (THIRD + 72, "<Q", (1,), "reserved"),
    "bytes with a shape": (FIRST + 53, "<B", (1,), "has a shape"),
    "padding": (HEAD.size + 3 * ENTRY.size + 8, "<B", (1,), "padding behind section 'meta'"),
}


@pytest.mark.parametrize(("at", "form", "values", "message"), WRONG.values(), ids=WRONG.keys())
def test_planted_faults_are_named(folder: Path, at: int, form: str, values: tuple[int | bytes], message: str) -> None:
    with pytest.raises(PackageError, match=message):
        parse(edit(sample(folder), at, form, *values))


def test_flipped_weights_are_named_with_their_place(folder: Path) -> None:
    data = bytearray(sample(folder))
    at = struct.unpack_from("<Q", data, THIRD + 32)[0]
    data[at + 5] ^= 4
    path = folder / "flipped.cpk"
    path.write_bytes(data)
    with pytest.raises(PackageError, match=rf"flipped.cpk: section 'weights' \(offset {at}, 70 bytes\) is damaged"):
        open_package(path)


def test_other_configuration_is_refused_by_name(folder: Path) -> None:
    path = folder / "other.cpk"
    write(path, {"a": b"1"}, TINY)
    with pytest.raises(ConfigMismatchError, match=r"other.cpk: made for .*'tiny'.* but this is 'u200'"):
        open_package(path, U200)
    renamed = dataclasses.replace(TINY, name="small")
    assert open_package(path, renamed).config_name == "tiny"
    assert open_package(path, {"tiny": TINY, "u200": U200}).config_name == "tiny"
    with pytest.raises(ConfigMismatchError, match=r"other.cpk: made for .*'tiny', but there are only large, u200"):
        open_package(path, {"u200": U200, "large": U200})
    with pytest.raises(ConfigMismatchError, match=r"other.cpk: made for .*'tiny'.* but this is 'u200'"):
        open_package(path, {"tiny": U200})
    slower = TINY.with_ddr_efficiency(1, 2)
    with pytest.raises(ConfigMismatchError):
        open_package(path, slower)


@pytest.mark.parametrize(
    "sections",
    [
        {"": b""},
        {"x" * 33: b""},
        {"a\n": b""},
        {"é" * 17: b""},
        {"a": "text"},
        {"a": np.zeros(3, dtype=bool)},
        {"a": np.array(["x"])},
        {"a": np.array([None])},
        {"a": np.zeros((1,) * 9)},
        {"a": np.zeros((2**40, 2**20, 0), dtype=np.int8)},
        {f"s{i}": b"" for i in range(257)},
    ],
)
def test_unfit_sections_are_refused_and_nothing_is_left(tmp_path: Path, sections: dict[str, object]) -> None:
    with pytest.raises(PackageError):
        write(tmp_path / "a.cpk", sections, TINY)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_failed_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.cpk"
    write(path, {"a": b"1"}, TINY)
    before = path.read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(PackageError, match="No space left"):
        write(path, {"a": b"2"}, TINY)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.cpk"]


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, message in (
        (tmp_path / "none.cpk", "No such file"),
        (tmp_path, "a folder"),
        (pipe, "not a regular file"),
        (Path(__file__).with_name("none") / "a", "No such file"),
    ):
        with pytest.raises(PackageError, match=message):
            open_package(path)
    for path in (tmp_path, pipe, tmp_path / "none" / "a.cpk", Path("/dev/null")):
        with pytest.raises(PackageError, match="cannot write"):
            write(path, {"a": b"1"}, TINY)
    small = tmp_path / "small"
    small.write_bytes(b"COREPOOL")
    with pytest.raises(PackageError, match="not a compiled model"):
        open_package(small)


def test_large_package_is_checked_quickly(tmp_path: Path) -> None:
    path = tmp_path / "large.cpk"
    write(path, {"weights": np.zeros(140 << 20, dtype=np.uint8)}, U200)
    best = min(_seconds(path) for _ in range(3))
    assert best < 1.0, f"{best:.2f} s"  # 0.05 s on an idle machine; the bound leaves room for a busy one


def _seconds(path: Path) -> float:
    begin = time.perf_counter()
    assert open_package(path).array("weights").nbytes == 140 << 20
    return time.perf_counter() - begin


def test_format_numbers_are_what_files_already_have() -> None:
    assert (package.FORMAT_VERSION, HEAD.size, ENTRY.size) == (1, 128, 128)
