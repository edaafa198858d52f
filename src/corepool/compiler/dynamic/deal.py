"""Dealing: which core gets which instruction frame packages of a layer.

It must not know what packages hold. Static compiler (to price tilings) and linker deal by this one function, so
predictions and streams agree.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt


@numba.njit(cache=True, nogil=True)
def deal(latency: npt.NDArray[np.int64], begin: int, end: int, cores: int, bounds: npt.NDArray[np.int64]) -> None:
    """Cut packages ``begin .. end`` into one run for each core, balanced by predicted latency.

    ``latency`` [packages] in cycles; ``bounds`` [cores + 1] receives the cuts: core c gets ``bounds[c] .. bounds[c +
    1]``. Runs keep what neighbours share. A cut falls where the sum of latencies is nearest to the core's share.
    """
    total = 0
    for i in range(begin, end):
        total += latency[i]
    position = begin
    spent = 0
    bounds[0] = begin
    for c in range(1, cores):
        # target = total * c / cores, compared in integers
        while position < end:
            # Take the package if its middle lies before the target.
            if (2 * spent + latency[position]) * cores <= 2 * total * c:
                spent += latency[position]
                position += 1
            else:
                break
        bounds[c] = position
    bounds[cores] = end
