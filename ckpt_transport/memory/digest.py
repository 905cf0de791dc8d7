"""A digest of bytes that is the same wherever it is computed, as fast as memory is read.

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
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt
import torch

ROWS, COLUMNS = 64, 512
ROW_BYTES = COLUMNS * 8
PAGE_BYTES = ROWS * ROW_BYTES
MASK = (1 << 64) - 1

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
    """The digest of runs of bytes, one behind the other; each begins a page of its own.

    Args:
        runs: uint8, one-dimensional, contiguous, all on one device.

    Returns: the two sums: shape ``(2,)``, dtype int64, on that device; on a GPU in the order of its current stream.
    """
    if runs[0].is_cuda:
        from ckpt_transport.memory.device_digest import digest_on_device

        return digest_on_device(runs)
    rows = columns = first = 0
    for run in runs:
        if count := page_count(run.numel()):
            mixed = mix(_summed(run.numpy(), count) + _numbers(first, count))
            rows += int(mixed[:, :ROWS].sum())
            columns += int(mixed[:, ROWS:].sum())
            first += count
    return torch.from_numpy(np.array([rows & MASK, columns & MASK], np.uint64).view(np.int64))


def as_bytes(sums: torch.Tensor) -> Digest:
    """What :func:`digest` has returned, as bytes; waits for the device that it is on."""
    return sums.cpu().numpy().tobytes()


def page_count(nbytes: int) -> int:
    """How many pages a run of ``nbytes`` takes."""
    return -(-nbytes // PAGE_BYTES)


@cache
def keys() -> Words:
    """The keys of the columns: odd numbers without a pattern."""
    counted = np.arange(1, COLUMNS + 1, dtype=np.uint64)
    return mix(counted * np.uint64(GOLDEN)) | np.uint64(1)


def mix(numbers: Words) -> Words:
    """Each of ``numbers`` without its patterns; a bijection of 64 bits. Works in place, and returns them."""
    first, second, third = map(np.uint64, SHIFTS)
    numbers ^= numbers >> first
    numbers *= np.uint64(MULTIPLIERS[0])
    numbers ^= numbers >> second
    numbers *= np.uint64(MULTIPLIERS[1])
    numbers ^= numbers >> third
    return numbers


def _summed(raw: npt.NDArray[np.uint8], count: int) -> Words:
    """For each of the pages of a run the sums of its rows, and behind those the sums of its columns."""
    whole = raw.size // PAGE_BYTES
    pages = list(raw[: whole * PAGE_BYTES].view(np.uint64).reshape(whole, ROWS, COLUMNS))
    if whole < count:
        pages.append(_rows(raw[whole * PAGE_BYTES :]))
    sums = np.zeros((count, ROWS + COLUMNS), np.uint64)
    for page, found in zip(pages, sums, strict=True):
        np.dot(page, keys(), out=found[: len(page)])
        np.add.reduce(page, axis=0, out=found[ROWS:])
    return sums


def _rows(rest: npt.NDArray[np.uint8]) -> Words:
    """The rows of a page that does not come to its end; the last is filled up with zeros."""
    rows = np.zeros(-(-rest.size // ROW_BYTES) * ROW_BYTES, np.uint8)
    rows[: rest.size] = rest
    return rows.view(np.uint64).reshape(-1, COLUMNS)


@lru_cache(maxsize=16)
def _numbers(first: int, count: int) -> Words:
    """Of the rows and columns of pages from page ``first`` on, spread over 64 bits, in the order of their sums."""
    pages = np.arange(first, first + count, dtype=np.uint64)[:, None]
    rows = pages * np.uint64(ROWS) + np.arange(1, ROWS + 1, dtype=np.uint64)
    columns = pages * np.uint64(COLUMNS) + np.arange(1, COLUMNS + 1, dtype=np.uint64)
    golden = np.uint64(GOLDEN)
    return np.concatenate([rows * golden, columns * golden + np.uint64(COLUMN_SALT)], axis=1)
