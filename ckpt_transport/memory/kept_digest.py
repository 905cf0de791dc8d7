"""A digest in host memory is kept up to date from what has changed, without reading the rest again.

The sums along rows and columns of every page are kept, which take 1.8 % of the bytes that they are of. A change of an
element adds to one of each; mixing them costs as much for a few changes as for many.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.memory.digest_pages import COLUMNS, PAGE_BYTES, ROWS, Words, keys, page_count
from ckpt_transport.memory.host_digest import PAGES_AT_ONCE, add_sums, sums_along

Numbers = npt.NDArray[np.int64]


class KeptDigest:
    """The digest of some runs of bytes, which may change.

    Args:
        runs: as those of :func:`~ckpt_transport.memory.digest.digest`; in host memory, none of them empty, and apart
            from each other.
    """

    def __init__(self, runs: Sequence[torch.Tensor]) -> None:
        counts = [page_count(run.numel()) for run in runs]
        *firsts, total = accumulate(counts, initial=0)
        self._rows, self._columns = np.empty((total, ROWS), np.uint64), np.empty((total, COLUMNS), np.uint64)
        with np.errstate(over="ignore"):
            for run, first, count in zip(runs, firsts, counts, strict=True):
                sums_along(run.numpy(), self._rows[first : first + count], self._columns[first : first + count])
        places = sorted((run.data_ptr(), run.numel(), first) for run, first in zip(runs, firsts, strict=True))
        self._starts, self._sizes, self._firsts = (np.array(column, np.int64) for column in zip(*places, strict=True))

    @property
    def sums(self) -> torch.Tensor:
        """As :func:`~ckpt_transport.memory.digest.digest` would compute it now."""
        sums = np.zeros(2, np.uint64)
        with np.errstate(over="ignore"):
            for first in range(0, len(self._rows), PAGES_AT_ONCE):
                some = slice(first, first + PAGES_AT_ONCE)
                add_sums(sums, np.concatenate([self._rows[some], self._columns[some]], axis=None), first)
        return torch.from_numpy(sums.view(np.int64))

    def change(self, addresses: Numbers, old: npt.NDArray[np.integer], new: npt.NDArray[np.integer]) -> bool:
        """Hear what has changed; False where an element does not begin at a multiple of its size in a run.

        Args:
            addresses: of the first byte of each element, no two alike.
            old, new: what was there, and what is; of one type.
        """
        run = np.searchsorted(self._starts, addresses, side="right") - 1
        within = addresses - self._starts[run]
        if (run < 0).any() or (within % old.itemsize).any() or (within + old.itemsize > self._sizes[run]).any():
            return False
        word, shift = within >> 3, ((within & 7) << 3).astype(np.uint64)
        word += self._firsts[run] * (PAGE_BYTES // 8)
        column = word & (COLUMNS - 1)
        with np.errstate(over="ignore"):
            by = (_wide(new) - _wide(old)) << shift
            np.add.at(self._rows.reshape(-1), word // COLUMNS, by * keys()[column])
            np.add.at(self._columns.reshape(-1), word // (ROWS * COLUMNS) * COLUMNS + column, by)
        return True


def _wide(values: npt.NDArray[np.integer]) -> Words:
    """The bits of each as a number of 64 bits."""
    return values.view(f"u{values.itemsize}").astype(np.uint64)
