"""The digest of strided ranges is that of their bytes packed one behind the other, wherever it is computed.

A page of the digest for each run would take longer than the bytes where runs are short. So ranges of short runs are
packed, those that follow each other together, and each such pack begins a page, as a run does that is as long as a page
or longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.memory.digest import digest
from ckpt_transport.memory.digest_pages import PAGE_BYTES
from ckpt_transport.memory.host_digest import add
from ckpt_transport.memory.strided_range import StridedRange

PACKED_PAGES = 8
"""So many are packed at a time on the host: they stay in a core's cache until they are added."""

Find = Callable[[int, int], torch.Tensor]
"""The memory from a byte on, so many bytes, of which a strided range lies somewhere in one run of memory."""


def packs(ranges: Sequence[StridedRange]) -> Iterator[list[StridedRange]]:
    """Ranges that are packed together, each list for itself: long runs by themselves."""
    for is_long, some in groupby(ranges, key=lambda each: each.nbytes >= PAGE_BYTES):
        if not is_long:
            yield list(some)
            continue
        for each in some:
            for number in range(each.runs):
                yield [StridedRange(each.start + number * each.stride, each.nbytes)]


def packed_digest(ranges: Sequence[StridedRange], find: Find) -> torch.Tensor:
    """Compute the digest of strided ranges, as :func:`ckpt_transport.memory.digest.digest` returns it.

    Args:
        ranges: at least one.
        find: where they lie; all on one device.
    """
    first = find(ranges[0].start, 1)
    if not first.is_cpu:
        return digest([_pack_by_torch([_rows(each, find) for each in pack]) for pack in packs(ranges)])
    sums = np.zeros(2, np.uint64)
    page = 0
    with np.errstate(over="ignore"):
        for pack in packs(ranges):
            for some in _pack_by_parts([_rows(each, find).numpy() for each in pack]):
                page = add(sums, some, page)
    return torch.from_numpy(sums.view(np.int64))


def _rows(each: StridedRange, find: Find) -> torch.Tensor:
    """The runs of a range, as rows."""
    return find(each.start, each.end - each.start).as_strided((each.runs, each.nbytes), (max(each.stride, 1), 1))


def _pack_by_torch(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([each.reshape(-1) for each in rows])


def _pack_by_parts(rows: Sequence[npt.NDArray[np.uint8]]) -> Iterator[npt.NDArray[np.uint8]]:
    """All rows one behind the other, in parts of some whole pages and a last one; each is valid until the next."""
    if len(rows) == 1 and len(rows[0]) == 1:
        yield rows[0].reshape(-1)
        return
    packed = np.empty(min(PACKED_PAGES * PAGE_BYTES, sum(each.size for each in rows)), np.uint8)
    filled = 0
    for each in rows:
        nbytes, at = each.shape[1], 0
        while at < each.size:
            row, column = divmod(at, nbytes)
            room = len(packed) - filled
            many = room // nbytes
            some = each[row : row + many] if many and not column else each[row : row + 1, column : column + room]
            packed[filled : filled + some.size].reshape(some.shape)[:] = some
            filled, at = filled + some.size, at + some.size
            if filled == len(packed):
                yield packed
                filled = 0
    if filled:
        yield packed[:filled]
