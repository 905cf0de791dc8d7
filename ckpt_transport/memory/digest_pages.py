"""The digest of bytes is the same wherever it is computed, and is computed as fast as memory is read.

Bytes are read as words of 64 bits, little end first, in *pages* of 64 rows of 512 words; what is missing at the end of
the last page counts as zero. With all arithmetic modulo 2^64, a digest is two sums over all pages:

* of the **rows**: the sum of ``word * KEYS[column]`` along each row, mixed with the row's number;
* of the **columns**: the sum of the words down each column of a page, mixed with the column's number.

Each key is odd and mixing is a bijection, so a change within one word changes both sums, surely. What moves from one
column to another changes the sums of columns, what moves from one row to another those of rows. Nothing else is as
cheap on a CPU, where the two sums along pages are one call each, in compiled code and without the interpreter's lock.

It protects from faults, not from forgers.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import torch

ROWS, COLUMNS = 64, 512
WORD_BYTES = 8
ROW_BYTES = COLUMNS * WORD_BYTES
PAGE_BYTES = ROWS * ROW_BYTES
PAGE_SUMS = ROWS + COLUMNS
ALIGNMENT = 16
"""Bytes; kernels read two words at a time."""
WARPS = 2
"""Of a kernel's program, which works on a page. More of them would read more rows at a time, and exchange their sums.
``python -m benchmarks.integrity`` says how fast the kernel reads where there is a GPU."""

GOLDEN = 0x9E3779B97F4A7C15
"""Odd; numbers of rows and columns are spread with it."""
COLUMN_SALT = 0xD1B54A32D192ED03
MULTIPLIERS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
SHIFTS = 30, 27, 31
"""Of the mixing function, as in SplitMix64."""

Words = npt.NDArray[np.uint64]
Digest = bytes
"""16 bytes: the sum of rows and that of columns, little end first."""


def page_count(nbytes: int) -> int:
    """How many pages a run of ``nbytes`` takes."""
    return -(-nbytes // PAGE_BYTES)


@cache
def keys() -> Words:
    """The keys of the columns: odd numbers without a pattern."""
    counted = np.arange(1, COLUMNS + 1, dtype=np.uint64)
    return mix(counted * np.uint64(GOLDEN)) | np.uint64(1)


@cache
def key_table(device: torch.device) -> torch.Tensor:
    """The keys on a device, as signed numbers."""
    return torch.from_numpy(keys().view(np.int64)).to(device)


def mix(numbers: Words) -> Words:
    """Mix the bits of each number, in place, by a bijection of 64 bits; return the numbers."""
    first, second, third = map(np.uint64, SHIFTS)
    shifted = np.empty_like(numbers)
    numbers ^= np.right_shift(numbers, first, out=shifted)
    numbers *= np.uint64(MULTIPLIERS[0])
    numbers ^= np.right_shift(numbers, second, out=shifted)
    numbers *= np.uint64(MULTIPLIERS[1])
    numbers ^= np.right_shift(numbers, third, out=shifted)
    return numbers
