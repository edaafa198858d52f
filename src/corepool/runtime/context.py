"""What a model that was stopped between two layers needs to go on, also on other cores: found in its own streams.

It must not know networks or the static compiler: what later layers load, and no layer writes before, is what counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from corepool.config import HardwareConfig
from corepool.device.base import Device, Lease
from corepool.device.decode import COLUMN, decode_stream
from corepool.errors import DeviceError
from corepool.isa.table import Opcode

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Streams = Sequence[Bytes]

NOBODY = -1
_PLACE = [COLUMN[name] for name in ("address", "blocks", "rows", "pixels", "block_stride", "row_stride")]
_OPCODE, _BANKS = COLUMN["opcode"], COLUMN["banks"]


@dataclass(frozen=True)
class Saved:
    """An inference between two layers: ``data`` [n, word bytes] belongs at words ``places`` [n] of the window.

    ``next_layer`` goes on with it. ``drain_cycles``: from the request to the stop; ``cycles``: of all its runs so far.
    """

    model: str
    next_layer: int
    places: Ints
    data: Bytes
    drain_cycles: int
    cycles: int

    @property
    def bytes(self) -> int:
        """Size of the state: what was read from the banks."""
        return self.data.nbytes


@dataclass(frozen=True)
class Switch:
    """What it took to bring a stopped inference to the point where it goes on; transfers in bytes over all banks."""

    drain_cycles: int
    saved_bytes: int
    loaded_bytes: int
    weight_bytes: int
    stream_bytes: int
    clear_cycles: int
    link_ms: float


class Maps:
    """The words of a window that hold feature maps, and what streams do with them."""

    def __init__(self, config: HardwareConfig, meta: dict[str, int]) -> None:
        self.config = config
        self._first = -(-meta["weights_bytes"] // config.word_bytes)  # constants below: uploaded, never saved
        self._end = meta["streams_offset"] // config.word_bytes
        self.words = self._end

    def none(self) -> Flags:
        """No word at all [words of the window up to its streams]."""
        return np.zeros(self.words, np.bool_)

    def range(self, offset: int, size: int) -> Flags:
        """The words of bytes ``offset .. offset + size``."""
        marked = self.none()
        marked[offset // self.config.word_bytes : -(-(offset + size) // self.config.word_bytes)] = True
        return marked

    def _mark(self, target: npt.NDArray[np.generic], row: Sequence[int], value: int | bool) -> None:
        """Give ``value`` to the words of a transfer."""
        address, blocks, rows, pixels, block_stride, row_stride = row
        first = address // self.config.word_bytes
        last = first + (blocks - 1) * block_stride + (rows - 1) * row_stride + pixels
        if first < self._first or last > self._end:
            return  # constants
        shape, strides = (blocks, rows, pixels), (block_stride, row_stride, 1)
        view = np.lib.stride_tricks.as_strided(
            target[first:], shape, [stride * target.itemsize for stride in strides], writeable=True
        )
        view[...] = value

    def _stages(self, streams: Streams) -> list[list[tuple[int, Ints]]]:
        """From SYNC to SYNC (or END): the core's place in the lease, and its LOADs and SAVEs. No stage reads what it
        writes."""
        stages: list[list[tuple[int, Ints]]] = []
        for core, stream in enumerate(streams):
            fields = decode_stream(self.config, stream).fields
            opcode = fields[:, _OPCODE]
            ends = np.flatnonzero((opcode == Opcode.SYNC) | (opcode == Opcode.END))
            moves = np.flatnonzero((opcode == Opcode.LOAD) | (opcode == Opcode.SAVE))
            cuts = np.searchsorted(moves, ends)
            for stage, part in enumerate(np.split(moves, cuts[:-1])):
                if stage == len(stages):
                    stages.append([])
                stages[stage].append((core, fields[part]))
        return stages

    def written(self, owner: npt.NDArray[np.int8], streams: Streams, stages: int) -> None:
        """Note in ``owner`` [words] a bank that holds each word's latest value, at the SYNC behind so many stages."""
        for stage in self._stages(streams)[:stages]:
            for _, moves in stage:
                for row in moves[moves[:, _OPCODE] == Opcode.SAVE].tolist():
                    mask = row[_BANKS]
                    self._mark(owner, [row[column] for column in _PLACE], (mask & -mask).bit_length() - 1)

    def needed(self, streams: Streams, banks: Sequence[int], finals: Flags, home: int) -> dict[int, Flags]:
        """For each bank the words that cores there load (``banks``: of each core) before a stage writes them there.

        ``finals``: words that the host reads in bank ``home`` at the end.
        """
        reads = {bank: self.none() for bank in banks}
        written = {bank: self.none() for bank in banks}
        reads.setdefault(home, self.none())
        written.setdefault(home, self.none())
        for stage in self._stages(streams):
            for core, moves in stage:
                loaded = self.none()
                for row in moves[moves[:, _OPCODE] == Opcode.LOAD].tolist():
                    self._mark(loaded, [row[column] for column in _PLACE], True)
                reads[banks[core]] |= loaded & ~written[banks[core]]
            for _, moves in stage:
                for row in moves[moves[:, _OPCODE] == Opcode.SAVE].tolist():
                    place = [row[column] for column in _PLACE]
                    for bank, there in written.items():
                        if row[_BANKS] >> bank & 1:
                            self._mark(there, place, True)
        reads[home] |= finals & ~written[home]
        return reads


def runs(places: Ints) -> Iterable[tuple[int, int]]:
    """Sorted numbers as half-open ranges of their places in the list that follow each other by one."""
    cuts = np.flatnonzero(np.diff(places) != 1) + 1
    return zip([0, *cuts.tolist()], [*cuts.tolist(), len(places)], strict=True) if len(places) else []


def fetch(device: Device, lease: Lease, owner: npt.NDArray[np.int8], live: Flags) -> tuple[Ints, Bytes]:
    """Live words and their values, each from a bank that holds it. Raises DeviceError for one that no bank holds."""
    word = device.config.word_bytes
    places = np.flatnonzero(live)
    data = np.zeros((len(places), word), np.uint8)
    owners = owner[places]
    if len(places) and owners.min() == NOBODY:
        raise DeviceError(f"byte {int(places[owners.argmin()]) * word} of the window is needed but was never written")
    for bank in lease.banks:
        mine = np.flatnonzero(owners == bank)
        for first, last in runs(places[mine]):
            chosen = mine[first:last]
            read = device.read(lease, int(places[chosen[0]]) * word, len(chosen) * word, bank)
            data[chosen] = read.reshape(-1, word)
    return places, data


def load(device: Device, lease: Lease, saved: Saved, needed: dict[int, Flags]) -> int:
    """Write what each bank needs of a saved state; returns the bytes.

    Other tilings load some words that no result depends on (rows between strides): these may be missing.
    """
    word, total = device.config.word_bytes, 0
    held = np.zeros(max((len(wanted) for wanted in needed.values()), default=0), np.bool_)
    held[saved.places] = True
    for bank, wanted in needed.items():
        places = np.flatnonzero(wanted & held)
        found = np.searchsorted(saved.places, places)
        for first, last in runs(places):
            device.write(lease, int(places[first]) * word, saved.data[found[first:last]], [bank])
        total += len(places) * word
    return total
