"""A partial copy brings some bytes of a bucket to the same places of other memory, and reads no others."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch

from ckpt_transport.memory.copy_table import Addresses, CopyTable, has_copy_tables
from ckpt_transport.memory.runs import Runs, number_at
from ckpt_transport.memory.strided_bytes import ElementCopy, StridedBytes
from ckpt_transport.memory.strided_range import StridedRange

LONG = 1 << 18
"""Bytes of a run from which on a copy engine brings it by itself: to start it takes as long as some of these bytes."""


class PartialCopy:
    """Copies parts of buckets that are alike.

    Long runs are brought one by one, by a copy engine where there is one. Slices of short ones are read by one launch
    of a GPU where it can read the memory, and elsewhere by torch, one copy for each slice.

    Args:
        device: where the bytes are wanted.
        parts: places in the bucket; each lies within one run of its memory.
    """

    def __init__(self, device: torch.device, parts: Sequence[StridedRange]) -> None:
        self._device = device
        self._long = [
            (part.start + number * part.stride, part.nbytes)
            for part in parts
            if part.runs == 1 or part.nbytes >= LONG
            for number in range(part.runs)
        ]
        self._slices = [part for part in parts if part.runs > 1 and part.nbytes < LONG]
        self._strided = frozenset(part for part in parts if part.runs > 1)
        self._runs = sorted((part.start, part.end) for part in parts if part.runs == 1)
        self._asked: tuple[Sequence[StridedRange], bool] = (), True
        self._table: CopyTable | None = None
        self.nbytes = sum(part.total for part in parts)
        """How many bytes are read."""

    def run(self, runs: Runs, into: torch.Tensor) -> None:
        """Enqueue the copies.

        Args:
            runs: the bucket.
            into: uint8, one-dimensional, on the device; as long as the bucket. Other bytes of it stay as they are.
        """
        for start, nbytes in self._long:
            into[start : start + nbytes].copy_(_found(runs, start, nbytes), non_blocking=True)
        if not self._slices:
            return
        if has_copy_tables(self._device) and len(runs) == 1 and _reads(self._device, runs[0].raw):
            self._launch(runs[0].raw.data_ptr() - runs[0].at, into)
            return
        for part in self._slices:
            read, write = _found(runs, part.start, part.end - part.start), into[part.start : part.end]
            _rows(write, part).copy_(_rows(read, part), non_blocking=True)

    def covers(self, parts: Sequence[StridedRange]) -> bool:
        """Whether each of these is one of the parts that are brought, or lies within a run of them.

        Whoever asks again passes the same object, which is not looked at again.
        """
        if self._asked[0] is not parts:
            self._asked = parts, all(part in self._strided or self._in_a_run(part) for part in parts)
        return self._asked[1]

    def _in_a_run(self, part: StridedRange) -> bool:
        number = bisect_right(self._runs, part.start, key=lambda run: run[0]) - 1
        return number >= 0 and part.end <= self._runs[number][1]

    def _launch(self, address: int, into: torch.Tensor) -> None:
        if self._table is None:
            self._table = CopyTable(self._device, StridedBytes.of([_copy(part) for part in self._slices]))
        self._table.copy(Addresses(self._device, [address]), Addresses(self._device, [into.data_ptr()]))


def _found(runs: Runs, start: int, nbytes: int) -> torch.Tensor:
    run = runs[number_at(runs, start)]
    return run.raw[start - run.at : start - run.at + nbytes]


def _reads(device: torch.device, raw: torch.Tensor) -> bool:
    """Whether a kernel on ``device`` reads this memory."""
    return raw.device == device or (raw.is_cpu and raw.is_pinned())


def _rows(raw: torch.Tensor, part: StridedRange) -> torch.Tensor:
    return raw.as_strided((part.runs, part.nbytes), (part.stride, 1))


def _copy(part: StridedRange) -> ElementCopy:
    strides = (part.stride, 1)
    return ElementCopy(0, 0, part.start, part.start, 1, (part.runs, part.nbytes), strides, strides)
