"""An extent in column order: its bytes are gathered out of the rows of their owner when a bucket is filled."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from ckpt_transport.memory import Backing, Buffer, MemoryKind, StridedRange
from ckpt_transport.planning.values.block_order import ColumnPart
from ckpt_transport.planning.values.manifest import Manifest

ROWS_BYTES = 4 << 20
"""So much of rows that cannot be looked at where they lie is brought at once, to take columns out of it."""


class ColumnExtent:
    """A :class:`~ckpt_transport.memory.Backing` of blocks of columns.

    Args:
        nbytes: its size.
        parts: what lies in it, ascending.
        sources: what their bytes are gathered from, by number.
    """

    kind = MemoryKind.SCATTERED

    def __init__(self, nbytes: int, parts: Sequence[ColumnPart], sources: Mapping[int, Backing]) -> None:
        self.nbytes, self._parts = nbytes, parts
        self._starts = [part.offset for part in parts]
        self._sources = {part.source: sources[part.source] for part in parts}

    def only_enqueues(self, device: torch.device) -> bool:
        return all(source.only_enqueues(device) for source in self._sources.values())

    def fill(self, slot: torch.Tensor, offset: int) -> None:
        end = offset + slot.numel()
        for number in range(max(bisect_right(self._starts, offset) - 1, 0), len(self._parts)):
            held = self._parts[number]
            if held.offset >= end:
                return
            first, last = max(offset - held.offset, 0), min(end - held.offset, held.part.total)
            if first < last:
                start = held.offset + first - offset
                _gather(self._sources[held.source], held.part, first, slot[start : start + last - first])

    def check(self) -> None:
        """Do nothing: those are asked whose bytes are gathered."""


def column_extents(manifest: Manifest, extents: Mapping[int, Backing]) -> dict[int, ColumnExtent]:
    """The extents in column order of the owner of ``extents``, by number."""
    parts: defaultdict[int, list[ColumnPart]] = defaultdict(list)
    for part in manifest.columns:
        if part.source in extents:
            parts[part.extent].append(part)
    return {
        number: ColumnExtent(manifest.extents[number].nbytes, held, extents) for number, held in sorted(parts.items())
    }


def _gather(source: Backing, rows: StridedRange, first: int, target: torch.Tensor) -> None:
    """Gather bytes of some runs, one behind the other.

    Args:
        source: in which they lie.
        rows: the runs.
        first: of their bytes, which is the first.
        target: where to; its size says how many.
    """
    row, column = divmod(first, rows.nbytes)
    done = 0
    while done < target.numel():
        start = rows.start + row * rows.stride + column
        left = target.numel() - done
        if column or left < rows.nbytes:
            count, length = 1, min(rows.nbytes - column, left)
            source.fill(target[done : done + length], start)
        else:
            count = _copy_rows(source, rows, start, target[done:])
            length = count * rows.nbytes
        row, column, done = row + count, 0, done + length


def _copy_rows(source: Backing, rows: StridedRange, start: int, target: torch.Tensor) -> int:
    """Copy whole runs from ``start`` on, as many as may be at once; return how many."""
    count, width = target.numel() // rows.nbytes, rows.nbytes
    if isinstance(source, Buffer) and source.tensor.is_cpu and target.is_cpu:
        memory = source.tensor.as_strided((count, width), (rows.stride, 1), source.tensor.storage_offset() + start)
    else:
        count = min(count, max(ROWS_BYTES // max(rows.stride, 1), 1))
        whole = torch.empty((count - 1) * rows.stride + width, dtype=torch.uint8, device=target.device)
        source.fill(whole, start)
        memory = whole.as_strided((count, width), (rows.stride, 1))
    target[: count * width].view(count, width).copy_(memory)
    return count
