"""DDR banks as one reserved stretch of memory each, and the windows that leases hold in them.

It must not know instructions, time or cores. Bytes that nobody touched cost nothing.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from corepool.device.base import WINDOW_ALIGNMENT
from corepool.errors import DeviceError

_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python names it from 3.13 on; the number is Linux's


class Banks:
    """``count`` separate memories of ``size`` bytes, zero at first: ``array`` is int8 [count, size]."""

    def __init__(self, count: int, size: int) -> None:
        self._page = mmap.PAGESIZE
        self.size = -(-size // self._page) * self._page
        self._map = mmap.mmap(-1, count * self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        self.array: npt.NDArray[np.int8] = np.frombuffer(self._map, np.int8).reshape(count, self.size)

    def zero(self, bank: int, start: int, size: int) -> None:
        """Zero bytes; whole pages are given back to the system, which hands out zeroed ones."""
        first = min(-(-start // self._page) * self._page, start + size)
        last = max((start + size) // self._page * self._page, first)
        self.array[bank, start:first] = 0
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, bank * self.size + first, last - first)
        self.array[bank, last : start + size] = 0


@dataclass
class Windows:
    """First-fit allocation in one bank of ``size`` bytes."""

    size: int
    taken: dict[int, int] = field(default_factory=dict)  # start: end

    def take(self, size: int) -> int:
        """The start of a new window. Raises DeviceError when there is no room."""
        length = -(-max(size, 1) // WINDOW_ALIGNMENT) * WINDOW_ALIGNMENT
        start = 0
        for begin in sorted(self.taken):
            if begin - start >= length:
                break
            start = self.taken[begin]
        if start + length > self.size:
            raise DeviceError(f"no bank has room for a window of {size} bytes; close leases or ask for less")
        self.taken[start] = start + length
        return start

    def free(self, start: int) -> None:
        del self.taken[start]
