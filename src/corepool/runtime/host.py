"""Turns the arrays that a user has into the bytes that a device reads, and back.

It must not know devices, leases or instructions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from corepool.errors import InputError, PackageError
from corepool.numerics import from_map, to_map

Array = npt.NDArray[Any]
ByteArray = npt.NDArray[np.uint8]
Pair = tuple[int, int]


@dataclass(frozen=True)
class HostFold:
    """How rows and columns of the source image are packed into channels: channel ``(i * kernel[1] + j) * channels + c``
    of the packed row ``y`` and column ``x`` is channel ``c`` of the source's row ``y * stride[0] - before[0] + i *
    dilation[0]`` and column ``x * stride[1] - before[1] + j * dilation[1]``, or ``pad_value`` outside the source.
    Pairs are rows, columns."""

    channels: int  # of the source, as height and width
    height: int
    width: int
    kernel: Pair
    stride: Pair
    dilation: Pair
    before: Pair
    pad_value: int

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], height: int) -> HostFold:
        """As a package describes the fold of a map of ``height`` rows. Packages made before rows were packed too have
        whole numbers, for the columns, in place of pairs. Raises what dictionaries and numbers raise."""
        if "left" in meta:
            kernel, stride, dilation = ((1, int(meta[name])) for name in ("kernel", "stride", "dilation"))
            before = 0, int(meta["left"])
        else:
            kernel, stride, dilation, before = (
                _pair(meta[name]) for name in ("kernel", "stride", "dilation", "before")
            )
            height = int(meta["height"])
        return cls(
            int(meta["channels"]), height, int(meta["width"]), kernel, stride, dilation, before, int(meta["pad_value"])
        )


def _pair(value: Any) -> Pair:
    rows, columns = value
    return int(rows), int(columns)


class Wanted(Protocol):
    """An array that users send."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def text(self) -> str:
        """Name, type and shape, for messages."""
        ...


@dataclass(frozen=True)
class Feed:
    """An array that users send and that the host's first steps read; ``dtype`` is numpy's name of the type."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Feed:
        """As a package describes it. Raises PackageError."""
        try:
            made = cls(str(meta["name"]), tuple(int(size) for size in meta["shape"]), np.dtype(meta["dtype"]).name)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PackageError(f"the package describes an input badly ({error!r}): compile it again") from None
        if np.dtype(made.dtype).kind not in "fiub" or min(made.shape, default=1) < 1:
            raise PackageError(f"input {made.name!r}: type {made.dtype} or shape {made.shape} is impossible")
        return made

    @property
    def text(self) -> str:
        """Name, type and shape, for messages."""
        return f"{self.name!r} {self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class HostPort:
    """One input or output: an ONNX tensor of ``shape`` and ``dtype``, and the INT8 map that stands for it on a device.

    ``axes`` names for each ONNX dimension the map axes ('c', 'h', 'w') that it joins. ``channels``, ``height`` and
    ``width`` are those of the map (after folding), ``offset`` its place in the lease's window in bytes. In memory the
    map is ``[ceil(channels / block)][height][width][block]`` bytes; channels beyond the last are zero when written.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]
    dtype: str
    scale: float
    zero_point: int
    offset: int
    channels: int
    height: int
    width: int
    block: int
    fold: HostFold | None = None

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], block: int) -> HostPort:
        """A port as a package describes it; ``block`` is the machine's channel block. Raises PackageError."""
        try:
            port = cls(
                name=str(meta["name"]),
                shape=tuple(int(size) for size in meta["shape"]),
                axes=tuple(tuple(str(axis) for axis in group) for group in meta["axes"]),
                dtype=str(meta["dtype"]),
                scale=float(meta["scale"]),
                zero_point=int(meta["zero_point"]),
                offset=int(meta["offset"]),
                channels=int(meta["channels"]),
                height=int(meta["height"]),
                width=int(meta["width"]),
                block=block,
                fold=None if meta.get("fold") is None else HostFold.from_meta(meta["fold"], int(meta["height"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PackageError(
                f"the package describes an input or output badly ({error!r}): compile it again"
            ) from None
        port._check()
        return port

    def _check(self) -> None:
        sizes = dict(zip("chw", self.map_shape, strict=True))
        joined = [int(np.prod([sizes.get(axis, 0) for axis in group], dtype=np.int64)) for group in self.axes]
        used = [axis for group in self.axes for axis in group]
        left_out = [sizes[axis] for axis in "chw" if axis not in used]
        if joined != list(self.shape) or len(used) != len(set(used)) or any(size != 1 for size in left_out):
            raise PackageError(f"port {self.name!r}: shape {self.shape} is no view of the map {self.map_shape}")
        if self.dtype not in ("float32", "int8", "uint8") or not self.scale > 0 or not -128 <= self.zero_point <= 127:
            raise PackageError(f"port {self.name!r}: type {self.dtype}, scale {self.scale} or zero point is impossible")
        fold = self.fold
        if fold is not None and (
            min(*self.map_shape, *fold.kernel, *fold.stride, *fold.dilation) < 1
            or fold.kernel[0] * fold.kernel[1] * fold.channels != self.channels
        ):
            raise PackageError(f"port {self.name!r}: folding does not give {self.channels} channels")
        if self.offset < 0 or min(self.channels, self.height, self.width) < 1:
            raise PackageError(f"port {self.name!r}: place or size is impossible")

    @cached_property
    def in_order(self) -> bool:
        """Whether the ONNX tensor is the map's channels, rows and columns in this order, only joined otherwise."""
        names = [name for group in self.axes for name in group]
        return names == sorted(names, key="chw".index)

    @cached_property
    def map_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the map before folding: what the ONNX tensor is a view of."""
        if self.fold is not None:
            return self.fold.channels, self.fold.height, self.fold.width
        return self.channels, self.height, self.width

    @cached_property
    def reals(self) -> npt.NDArray[np.float32]:
        """What each of the 256 codes stands for, by its byte: ``(code - zero point) * scale``."""
        codes = np.arange(256, dtype=np.uint8).view(np.int8)
        return (codes.astype(np.int32) - self.zero_point).astype(np.float32) * np.float32(self.scale)

    @cached_property
    def bytes(self) -> int:
        """Size of the map on the device."""
        return -(-self.channels // self.block) * self.height * self.width * self.block

    @property
    def text(self) -> str:
        """Name, type and shape, for messages."""
        return f"{self.name!r} {self.dtype}{list(self.shape)}"


def _codes(port: HostPort, array: Array) -> npt.NDArray[np.int8]:
    """The array as INT8 codes, same shape; float32 as ONNX QuantizeLinear does it."""
    if port.dtype == "int8":
        return array
    if port.dtype == "uint8":
        return (array ^ np.uint8(0x80)).view(np.int8)
    with np.errstate(over="ignore"):
        steps = np.divide(array, np.float32(port.scale), dtype=np.float32)
    np.rint(steps, out=steps)
    # Clipped before the zero point is added, all sums are small whole numbers and exact.
    np.clip(steps, np.float32(-128 - port.zero_point), np.float32(127 - port.zero_point), out=steps)
    steps += np.float32(port.zero_point)
    return steps.astype(np.int8)


def complaints(port: Wanted, array: Array, values: bool = True) -> list[str]:
    """What is wrong with an input array for ``port``: nothing, or one text for each thing. ``values``: of them too."""
    found = []
    if array.dtype != np.dtype(port.dtype):
        found.append(f"{port.name!r} must be {port.dtype}, not {array.dtype}")
    if array.shape != port.shape:
        found.append(f"{port.name!r} must have the shape {list(port.shape)}, not {list(array.shape)}")
    if values and not found and array.dtype.kind == "f" and np.isnan(array).any():
        found.append(f"{port.name!r} holds NaN")
    return found


def check_inputs(ports: Iterable[Wanted], inputs: Mapping[str, Array], values: bool = True) -> None:
    """Raise InputError that lists every missing, unknown or unfit input, and what is expected. ``values``: look at them
    too, if nobody else will."""
    ports = list(ports)
    if len(inputs) == len(ports) and not any(
        port.name not in inputs or complaints(port, inputs[port.name], values) for port in ports
    ):
        return
    known = {port.name for port in ports}
    found = [f"there is no input {name!r}" for name in inputs if name not in known]
    for port in ports:
        found += complaints(port, inputs[port.name], values) if port.name in inputs else [f"{port.name!r} is missing"]
    if found:
        raise InputError(f"wrong input: {'; '.join(found)}; expected: {', '.join(port.text for port in ports)}")


def pack(port: HostPort, array: Array, checked: bool = False) -> ByteArray:
    """The bytes of the map that stands for ``array``, flat. Raises InputError for a wrong type or shape and for NaN,
    unless ``checked`` says that there is nothing of that kind."""
    found = [] if checked else complaints(port, array)
    if found:
        raise InputError(f"wrong input: {'; '.join(found)}; expected: {port.text}")
    block, height, width = port.block, port.height, port.width
    blocks = -(-port.channels // block)
    source = to_map(_codes(port, array), port.axes, port.map_shape)
    fold = port.fold
    if fold is None and port.channels == blocks * block:
        laid = np.ascontiguousarray(source.reshape(blocks, block, height, width).transpose(0, 2, 3, 1))
        return laid.reshape(-1).view(np.uint8)
    if fold is None and blocks == 1:
        few = np.zeros((height, width, block), dtype=np.int8)
        for channel in range(port.channels):
            few[:, :, channel] = source[channel]
        return few.reshape(-1).view(np.uint8)
    # Gathered channel after channel, then turned around in one go: far fewer scattered writes than channel by channel.
    planes = np.zeros((blocks * block, height, width), dtype=np.int8)
    if fold is None:
        planes[: port.channels] = source
    else:
        _fold(planes, source, fold)
    laid = np.ascontiguousarray(planes.reshape(blocks, block, height, width).transpose(0, 2, 3, 1))
    return laid.reshape(-1).view(np.uint8)


def _fold(planes: npt.NDArray[np.int8], source: npt.NDArray[np.int8], fold: HostFold) -> None:
    """Fill the first ``kernel[0] * kernel[1] * channels`` planes [., H, W] from the source [channels, its H, its W]."""
    used = fold.kernel[0] * fold.kernel[1] * fold.channels
    planes[:used] = fold.pad_value
    for number, tap in enumerate(np.ndindex(*fold.kernel)):
        to, of = [], []
        for axis in (0, 1):
            stride, shift = fold.stride[axis], tap[axis] * fold.dilation[axis] - fold.before[axis]
            # Places x of the packed map whose place x * stride + shift of the source there is.
            first = max(0, -(shift // stride))
            last = min(planes.shape[1 + axis], (source.shape[1 + axis] - 1 - shift) // stride + 1)
            begin = first * stride + shift
            to.append(slice(first, max(first, last)))
            of.append(slice(begin, max(begin, begin + (last - first - 1) * stride + 1), stride))
        part = planes[number * fold.channels : (number + 1) * fold.channels]
        part[:, to[0], to[1]] = source[:, of[0], of[1]]


def unpack(port: HostPort, data: ByteArray) -> Array:
    """The ONNX tensor that the bytes of a map stand for, in the port's own type and shape; float32 is dequantised.

    Raises InputError if ``data`` is not ``port.bytes`` long.
    """
    codes = _unpack_codes(port, data)
    if port.dtype == "int8":
        return np.ascontiguousarray(codes)
    if port.dtype == "uint8":
        return np.ascontiguousarray(codes).view(np.uint8) ^ np.uint8(0x80)
    return _dequantise(port, codes)


def unpack_float(port: HostPort, data: ByteArray) -> npt.NDArray[np.float32]:
    """As ``unpack``, but float32 ``(code - zero point) * scale`` whatever the port's type is."""
    return _dequantise(port, _unpack_codes(port, data))


def _dequantise(port: HostPort, codes: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    return port.reals[codes.view(np.uint8)]


def _unpack_codes(port: HostPort, data: ByteArray) -> npt.NDArray[np.int8]:
    if data.nbytes != port.bytes:
        raise InputError(f"port {port.name!r}: {data.nbytes} bytes instead of {port.bytes}")
    flat = np.ascontiguousarray(data).reshape(-1).view(np.int8)
    words = flat.reshape(-1, port.height, port.width, port.block)
    planes = words.transpose(0, 3, 1, 2).reshape(-1, port.height, port.width)[: port.channels]
    if port.in_order:
        return planes.reshape(port.shape)
    return np.asarray(from_map(planes, port.axes, port.shape))
