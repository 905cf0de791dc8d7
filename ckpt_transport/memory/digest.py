"""The digest of bytes is the same wherever it is computed, and is computed as fast as memory is read.

Bytes are read as words of 64 bits, little end first, in *pages* of 64 rows of 512 words; what is missing at the end of
the last page counts as zero. With all arithmetic modulo 2^64, a digest is two sums over all pages:

* of the **rows**: the sum of ``word * KEYS[column]`` along each row, mixed with the row's number;
* of the **columns**: the sum of the words down each column of a page, mixed with the column's number.

Each key is odd and mixing is a bijection, so a change within one word changes both sums, surely. What moves from one
column to another changes the sums of columns, what moves from one row to another those of rows. Nothing else is as
cheap on a CPU, where the two sums along a page are one call each, in compiled code and without the interpreter's lock.

It protects from faults, not from forgers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

ROWS, COLUMNS = 64, 512
PAGE_BYTES = ROWS * COLUMNS * 8
ALIGNMENT = 16
"""Bytes; kernels read two words at a time."""
WARPS = 2
"""Of a kernel's program, which works on a page. More of them would read more rows at a time, and exchange their sums.
``python -m benchmarks.integrity`` says how fast the kernel reads where there is a GPU."""
PAGES_AT_ONCE = 16
"""For each call of NumPy: so many that sixteen threads seldom wait for Python's lock."""

GOLDEN = 0x9E3779B97F4A7C15
"""Odd; numbers of rows and columns are spread with it."""
COLUMN_SALT = 0xD1B54A32D192ED03
MULTIPLIERS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
SHIFTS = 30, 27, 31
"""Of the mixing function, as in SplitMix64."""

Words = npt.NDArray[np.uint64]
Digest = bytes
"""16 bytes: the sum of rows and that of columns, little end first."""


def digest(runs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compute the digest of bytes in several tensors, one behind the other; each begins a page of its own.

    Args:
        runs: uint8, one-dimensional, contiguous, all on one device.

    Returns: the two sums: shape ``(2,)``, dtype int64, on that device; on a GPU in the order of its current stream.
    """
    if runs[0].is_cuda:
        from ckpt_transport.memory.device_digest import digest_on_device

        return digest_on_device(runs)
    sums = np.zeros(2, np.uint64)
    first = 0
    with np.errstate(over="ignore"):
        for run in runs:
            first = add(sums, run.numpy(), first)
    return torch.from_numpy(sums.view(np.int64))


def as_bytes(sums: torch.Tensor) -> Digest:
    """Bring what :func:`digest` has returned to the host; waits for the device that it is on."""
    return sums.cpu().numpy().tobytes()


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
    numbers ^= numbers >> first
    numbers *= np.uint64(MULTIPLIERS[0])
    numbers ^= numbers >> second
    numbers *= np.uint64(MULTIPLIERS[1])
    numbers ^= numbers >> third
    return numbers


def add(sums: Words, raw: npt.NDArray[np.uint8], first: int) -> int:
    """Add the pages of a run to both sums; its first is page ``first``. Returns the number of the next page."""
    count = page_count(raw.size)
    rows, columns = np.empty((count, ROWS), np.uint64), np.empty((count, COLUMNS), np.uint64)
    sums_along(raw, rows, columns)
    add_sums(sums, rows, columns, first)
    return first + count


def sums_along(raw: npt.NDArray[np.uint8], rows: Words, columns: Words) -> None:
    """Write the sums along rows and columns of the pages of a run to ``rows`` and ``columns``."""
    whole = raw.size // PAGE_BYTES
    for start in range(0, whole, PAGES_AT_ONCE):
        end = min(start + PAGES_AT_ONCE, whole)
        _add_up(raw[start * PAGE_BYTES : end * PAGE_BYTES], rows[start:end], columns[start:end])
    if rest := raw[whole * PAGE_BYTES :].size:
        last = np.zeros(PAGE_BYTES, np.uint8)
        last[:rest] = raw[whole * PAGE_BYTES :]
        _add_up(last, rows[whole:], columns[whole:])


def add_sums(sums: Words, rows: Words, columns: Words, first: int) -> None:
    """Add pages to both sums, by the sums along their rows and columns, which are overwritten."""
    sums[0] += mix(_numbered(rows, first, 0)).sum()
    sums[1] += mix(_numbered(columns, first, COLUMN_SALT)).sum()


def _add_up(raw: npt.NDArray[np.uint8], rows: Words, columns: Words) -> None:
    """Write the sums along rows and columns of whole pages to ``rows`` and ``columns``."""
    words = raw.view(np.uint64)
    np.dot(words.reshape(-1, COLUMNS), keys(), out=rows.reshape(-1))
    np.add.reduce(words.reshape(-1, ROWS, COLUMNS), axis=1, out=columns)


def _numbered(along: Words, first: int, salt: int) -> Words:
    """Add its number, spread over 64 bits, to each."""
    pages, each = along.shape
    numbers = np.arange(first * each + 1, (first + pages) * each + 1, dtype=np.uint64)
    numbers *= np.uint64(GOLDEN)
    numbers += np.uint64(salt)
    along += numbers.reshape(along.shape)
    return along
