"""Copies arrays of the host in moves of a few hundred kilobytes, which processors carry out faster than long ones.

A call of NumPy hands contiguous bytes to the C library in one move. Up to about the size of a core's cache, the C
library moves them by an instruction that does not read what it is about to overwrite; longer moves read each line of
the target first, until they are longer than most tensors. So long arrays are seen as rows of moves, and every other row
is copied in one call: rows that do not touch are moved one by one, inside one call, without Python's lock.
``python -m benchmarks.host_moves`` says what that is worth on a machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

MOVE_BYTES = 256 << 10
"""Of one move; less than the cache that a core has for itself."""


def move(target: npt.NDArray[Any], source: npt.NDArray[Any]) -> None:
    """Copy ``source`` over ``target``, of the same shape and dtype; they share no byte. Complete when it returns."""
    if target.nbytes <= 2 * MOVE_BYTES or not (target.flags.c_contiguous and source.flags.c_contiguous):
        np.copyto(target, source)
        return
    to, of = (array.reshape(-1).view(np.uint8) for array in (target, source))
    end = to.size // (2 * MOVE_BYTES) * (2 * MOVE_BYTES)
    rows_to, rows_of = (array[:end].reshape(-1, 2, MOVE_BYTES) for array in (to, of))
    for every_other in (0, 1):
        np.copyto(rows_to[:, every_other], rows_of[:, every_other])
    np.copyto(to[end:], of[end:])
