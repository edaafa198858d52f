"""The container of a compiled model: one file of named sections that is mapped into memory and checked to the last bit.

It must not know what the sections mean, nor networks, instructions or onnx.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from corepool.config import HardwareConfig
from corepool.errors import ConfigMismatchError, PackageError
from corepool.files import replacing

MAGIC: Final = b"COREPOOL"
FORMAT_VERSION: Final = 1
ALIGNMENT: Final = 64  # a cache line, and what devices want for transfers
MAX_SECTIONS: Final = 256
MAX_RANK: Final = 8
MAX_ELEMENTS: Final = 1 << 48  # counting empty dimensions as 1, so that no array's strides can overflow

# All little-endian. Head: magic, format version, length of head and table, length of the file, number of sections,
# CRC-32 of head and table (with this field zero), fingerprint and name of the hardware configuration. Table, for each
# section: name, offset, length, CRC-32, type code (0: bytes), rank, zero, shape, zero. Then the sections in the table's
# order, each on the next multiple of 64, with zeros between; head, table and file are such multiples long, too.
HEAD: Final = struct.Struct("<8sIIQII32s64s")
ENTRY: Final = struct.Struct("<32sQQIBBH8Q8x")
HEAD_CRC_OFFSET: Final = 28

_CODES: Final = {
    code: np.dtype(name).newbyteorder("<")
    for code, name in enumerate(
        ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"), start=1
    )
}  # fmt: skip

Array = npt.NDArray[Any]
Buffer = bytes | bytearray | memoryview | mmap.mmap
Wanted = HardwareConfig | Mapping[str, HardwareConfig] | None  # the configuration that a package must be made for


@dataclass(frozen=True)
class Package:
    """A checked package: its sections (read-only views of the file) and the configuration that it was made for.

    ``sections[name]`` is ``bytes`` or a read-only array, as it was written. ``size`` is that of the file in bytes.
    """

    sections: Mapping[str, Array | bytes]
    config_name: str
    fingerprint: str
    size: int

    def array(self, name: str) -> Array:
        """A section that must be there and be an array; raises PackageError."""
        value = self.sections.get(name)
        if not isinstance(value, np.ndarray):
            raise PackageError(f"the package has no array called {name!r}: compile the model again")
        return value

    def raw(self, name: str) -> bytes:
        """A section that must be there and be bytes; raises PackageError."""
        value = self.sections.get(name)
        if not isinstance(value, bytes):
            raise PackageError(f"the package has no bytes called {name!r}: compile the model again")
        return value


@dataclass(frozen=True)
class _Entry:
    name: str
    offset: int
    length: int
    crc: int
    code: int
    shape: tuple[int, ...]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(data: bytes, what: str) -> str:
    """Text of a fixed field padded with zeros; only one way of writing each text is accepted."""
    raw = data.rstrip(b"\0")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable():
        raise PackageError(f"{what} is not a name")
    return text


def _name_field(text: str, size: int, what: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    if not text or not text.isprintable() or len(data) > size:
        raise PackageError(f"{what} {text!r} must be 1 to {size} bytes of printable text")
    return data


# ---------------------------------------------------------------------------------------------------------- writing


def _payload(name: str, value: Array | bytes) -> tuple[memoryview, int, tuple[int, ...]]:
    """The bytes of a section, its type code and its shape."""
    if isinstance(value, bytes):
        return memoryview(value), 0, ()
    if not isinstance(value, np.ndarray | np.generic):
        raise PackageError(f"section {name!r} is neither bytes nor an array but {type(value).__name__}")
    plain = value.dtype.newbyteorder("<") if value.dtype.kind in "iuf" else value.dtype
    code = next((code for code, dtype in _CODES.items() if dtype == plain), 0)
    if code == 0:
        raise PackageError(f"section {name!r} is an array of {value.dtype}, which a package cannot hold")
    shape = value.shape
    if len(shape) > MAX_RANK or math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        raise PackageError(f"section {name!r} has the shape {shape}, which is more than a package can hold")
    array: Array = np.ascontiguousarray(value, dtype=_CODES[code])
    return array.reshape(-1).view(np.uint8).data, code, shape


def write(path: str | os.PathLike[str], sections: Mapping[str, Array | bytes], config: HardwareConfig) -> int:
    """Write a package and return its size in bytes. The same sections give the same bytes, whatever their order.

    The file appears whole or not at all. Raises PackageError for sections that a package cannot hold, and when
    the file cannot be written.
    """
    if len(sections) > MAX_SECTIONS:
        raise PackageError(f"{len(sections)} sections are more than a package can hold ({MAX_SECTIONS})")
    offset = head_length = HEAD.size + ENTRY.size * len(sections)
    entries, payloads = bytearray(), []
    for name in sorted(sections, key=lambda name: name.encode("utf-8", "surrogatepass")):
        data, code, shape = _payload(name, sections[name])
        field = _name_field(name, 32, "the section name")
        dimensions = (*shape, *[0] * (MAX_RANK - len(shape)))
        entries += ENTRY.pack(field, offset, data.nbytes, zlib.crc32(data), code, len(shape), 0, *dimensions)
        payloads.append(data)
        offset += _aligned(data.nbytes)
    label = _name_field(config.name, 64, "the configuration name")
    fields = [MAGIC, FORMAT_VERSION, head_length, offset, len(sections), 0, config.fingerprint().encode("ascii"), label]
    head = bytearray(HEAD.pack(*fields) + entries)
    struct.pack_into("<I", head, HEAD_CRC_OFFSET, zlib.crc32(head))
    try:
        with replacing(Path(path)) as file:
            file.write(head)
            for data in payloads:
                file.write(data)
                file.write(bytes(_aligned(data.nbytes) - data.nbytes))
    except OSError as error:
        raise PackageError(f"cannot write {path}: {error.strerror or error}") from error
    return offset


# ---------------------------------------------------------------------------------------------------------- reading


def open_package(path: str | os.PathLike[str], config: Wanted = None) -> Package:
    """Map a package into memory and check every byte of it; arrays are read-only views that keep the file mapped.

    Raises PackageError if it cannot be read or is damaged, and ConfigMismatchError if it was made for another
    configuration than ``config`` (several by name: the one of the package's name; None: any will do).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not block us
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
                raise PackageError(f"{path} is {kind}; expected a compiled model")
            if status.st_size < HEAD.size:
                raise PackageError(
                    f"{path} is not a compiled model: it has {status.st_size} bytes, the head alone has {HEAD.size}"
                )
            buffer = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise PackageError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return parse(buffer, config)
    except ConfigMismatchError as error:
        raise ConfigMismatchError(f"{path}: {error}") from None
    except PackageError as error:
        raise PackageError(f"{path}: {error}") from None


def parse(buffer: Buffer, config: Wanted = None) -> Package:
    """Check the bytes of a package and return views of them. Raises PackageError and ConfigMismatchError."""
    view = memoryview(buffer).toreadonly()
    name, fingerprint, entries = _parse_head(view)
    sections: dict[str, Array | bytes] = {}
    for entry in entries:
        data = view[entry.offset : entry.offset + entry.length]
        where = f"section {entry.name!r} (offset {entry.offset}, {entry.length} bytes)"
        if zlib.crc32(data) != entry.crc:
            raise PackageError(f"{where} is damaged: its checksum does not match; copy or compile the package again")
        end = entry.offset + entry.length
        if any(view[end : _aligned(end)]):
            raise PackageError(f"the padding behind {where}, at offset {end}, is damaged: it is not zero")
    if isinstance(config, Mapping):
        if name not in config:
            raise ConfigMismatchError(
                f"made for the hardware configuration {name!r}, but there are only {', '.join(sorted(config))}: "
                "compile the model again for one of them"
            )
        config = config[name]
    if config is not None and fingerprint != config.fingerprint():
        raise ConfigMismatchError(
            f"made for the hardware configuration {name!r} ({fingerprint[:8]}), but this is {config.name!r} "
            f"({config.fingerprint()[:8]}): compile the model again for {config.name!r}"
        )
    for entry in entries:
        data = view[entry.offset : entry.offset + entry.length]
        if entry.code == 0:
            sections[entry.name] = bytes(data)
        else:
            sections[entry.name] = np.frombuffer(data, dtype=_CODES[entry.code]).reshape(entry.shape)
    return Package(sections, name, fingerprint, len(view))


def _parse_head(view: memoryview) -> tuple[str, str, list[_Entry]]:
    """Check head and table, and that the sections tile the file; only then is anything else of the file looked at."""
    size = len(view)
    if size < HEAD.size:
        raise PackageError(f"not a compiled model: {size} bytes are less than its head of {HEAD.size}")
    magic, version, head_length, file_length, count, crc, fingerprint, name = HEAD.unpack_from(view)
    if magic != MAGIC:
        raise PackageError("not a compiled model: it does not begin with 'COREPOOL'")
    if version != FORMAT_VERSION:
        raise PackageError(
            f"made by format {version}, this corepool reads {FORMAT_VERSION}: compile the model again (offset 8)"
        )
    if count > MAX_SECTIONS:
        raise PackageError(f"the head (offset 24) counts {count} sections; {MAX_SECTIONS} is the limit: it is damaged")
    if head_length != HEAD.size + count * ENTRY.size:
        raise PackageError(f"the head (offset 12) claims a length of {head_length}, which {count} sections do not have")
    if file_length != size:
        what = "truncated" if size < file_length else "followed by bytes that do not belong to it"
        raise PackageError(f"the file is {what}: it has {size} bytes, its head (offset 16) says {file_length}")
    if head_length > size:
        raise PackageError(f"the file is truncated: {size} bytes, head and table alone have {head_length}")
    head = bytearray(view[:head_length])
    struct.pack_into("<I", head, HEAD_CRC_OFFSET, 0)
    if zlib.crc32(head) != crc:
        raise PackageError(f"the head (offset 0, {head_length} bytes) is damaged: its checksum does not match")
    if any(digit not in b"0123456789abcdef" for digit in fingerprint):
        raise PackageError("the fingerprint (offset 32) is not 32 hexadecimal digits")
    entries = _parse_table(head, count, head_length, size)
    return _text(name, "the configuration's name (offset 64)"), fingerprint.decode("ascii"), entries


def _parse_table(head: bytearray, count: int, head_length: int, size: int) -> list[_Entry]:
    """The sections' places; they must stand in order of their names, one behind the other, up to the file's end."""
    entries: list[_Entry] = []
    expected, before = head_length, b""
    for index in range(count):
        at = HEAD.size + index * ENTRY.size
        raw, offset, length, crc, code, rank, zero, *dimensions = ENTRY.unpack_from(head, at)
        what = f"section {index} (table entry at offset {at})"
        name = _text(raw, f"the name of {what}")
        if raw <= before:
            raise PackageError(f"{what}, {name!r}, is out of order or there twice")
        if offset != expected:
            raise PackageError(
                f"{what}, {name!r}, begins at {offset} instead of {expected}: sections overlap or leave a gap"
            )
        if length > size - offset:
            raise PackageError(
                f"{what}, {name!r}, has {length} bytes from {offset} on, beyond the file's end at {size}"
            )
        shape = tuple(dimensions[:rank])
        elements = math.prod(shape)
        if zero or any(head[at + ENTRY.size - 8 : at + ENTRY.size]) or any(dimensions[rank:]):
            raise PackageError(f"{what}, {name!r}, has reserved fields that are not zero")
        if code == 0 and rank != 0:
            raise PackageError(f"{what}, {name!r}, is plain bytes, yet has a shape")
        if code != 0 and (code not in _CODES or rank > MAX_RANK):
            raise PackageError(f"{what}, {name!r}, has the unknown type {code} or {rank} dimensions")
        if code != 0 and (
            elements * _CODES[code].itemsize != length or math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS
        ):
            raise PackageError(f"{what}, {name!r}, has the shape {shape}, which is not {length} bytes")
        entries.append(_Entry(name, offset, length, crc, code, shape))
        expected, before = offset + _aligned(length), raw
    if expected != size:
        raise PackageError(f"the sections end at {expected}, the file at {size}")
    return entries
