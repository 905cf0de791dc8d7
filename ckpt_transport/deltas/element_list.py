"""Elements of a range as a list: counted in each block, with their places in it. Parts of a list are lists again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.deltas.encoded import Encoded
from ckpt_transport.deltas.sections import BLOCK_UNITS, block_count, sections
from ckpt_transport.planning import DeltaForm

Counts = npt.NDArray[np.int64]
Places = npt.NDArray[np.uint16]
Values = npt.NDArray[np.unsignedinteger[Any]]


class ElementList(NamedTuple):
    """Some elements of a range.

    Attributes:
        first: the first of these blocks, in the range.
        counts: how many elements of each block there are.
        places: of each, in its block; ascending.
        values: what they become.
    """

    first: int
    counts: Counts
    places: Places
    values: Values

    @classmethod
    def of(cls, encoded: Encoded, unit: int, nbytes: int) -> ElementList:
        """The list that was encoded of a range of so many bytes, here."""
        units, host = nbytes // unit, encoded.raw.cpu().numpy()
        at = sections(encoded.form, unit, units, encoded.count)
        counts = host[: 4 * block_count(units)].view(np.uint32).astype(np.int64)
        places = host[at.places :][: 2 * encoded.count].view(np.uint16)
        return cls(0, counts, places, host[at.values :].view(f"u{unit}"))

    def blocks(self, each: int) -> list[ElementList]:
        """The same in parts of so many blocks; those in which nothing is are left out."""
        edges = self.edges
        found = []
        for block in range(0, len(self.counts), each):
            counts = self.counts[block : block + each]
            low, high = int(edges[block]), int(edges[block + len(counts)])
            if low < high:
                found.append(ElementList(self.first + block, counts, self.places[low:high], self.values[low:high]))
        return found

    @property
    def edges(self) -> Counts:
        """With which element each block begins, and where the last one ends."""
        return np.concatenate([[0], self.counts.cumsum()])

    @property
    def positions(self) -> npt.NDArray[np.uint32]:
        """Of the elements, counted from the first block."""
        found = np.repeat(np.arange(len(self.counts), dtype=np.uint32) * np.uint32(BLOCK_UNITS), self.counts)
        found += self.places
        return found

    @property
    def ends(self) -> tuple[int, int]:
        """The first element, and the last one, in the range."""
        held = np.flatnonzero(self.counts)
        first, last = (self.first + int(block) for block in (held[0], held[-1]))
        return first * BLOCK_UNITS + int(self.places[0]), last * BLOCK_UNITS + int(self.places[-1])

    def part(self, low: int, high: int) -> ElementList:
        """Those from one up to another one."""
        counts = np.diff(self.edges.clip(low, high))
        return self._replace(counts=counts, places=self.places[low:high], values=self.values[low:high])

    def those(self, found: npt.NDArray[np.intp]) -> ElementList:
        """Those with these numbers, which ascend."""
        counts = np.diff(np.searchsorted(found, self.edges))
        return self._replace(counts=counts, places=self.places.take(found), values=self.values.take(found))


def encode_list(parts: Sequence[ElementList], unit: int, nbytes: int) -> tuple[int, int, Encoded]:
    """Encode elements of a range of so many bytes, in a narrower one.

    Args:
        parts: ascending, with one element at least; what is between them is not known. Two may lie in one block.

    Returns: which unit the narrower range begins with, how many it has, and what was encoded of it.
    """
    low, high = parts[0].ends[0], parts[-1].ends[1]
    count, units = sum(len(part.places) for part in parts), high + 1 - low
    values = torch.empty(count * unit, dtype=torch.uint8)
    if count == units:
        np.concatenate([part.values for part in parts], out=values.numpy().view(f"u{unit}"))
        return low, units, Encoded(DeltaForm.WHOLE, units, values)
    block = low // BLOCK_UNITS
    begin = block * BLOCK_UNITS
    most = min(nbytes // unit - begin, (high // BLOCK_UNITS + 1) * BLOCK_UNITS - begin)
    masked = sections(DeltaForm.MASK, unit, units, count)
    listed = sections(DeltaForm.LIST, unit, most, count)
    form, at = (DeltaForm.LIST, listed) if listed.end <= masked.end else (DeltaForm.MASK, masked)
    raw = np.zeros(at.end, np.uint8)
    np.concatenate([part.values for part in parts], out=raw[at.values :].view(f"u{unit}"))
    if form is DeltaForm.LIST:
        counts = raw[: 4 * block_count(most)].view(np.uint32)
        for part in parts:
            here = max(part.first - block, 0)
            of = part.counts[max(block - part.first, 0) :][: len(counts) - here]
            counts[here : here + len(of)] += of.astype(np.uint32)
        np.concatenate([part.places for part in parts], out=raw[at.places :][: 2 * count].view(np.uint16))
        return begin, most, Encoded(form, count, torch.from_numpy(raw))
    bits = np.zeros(units, np.bool_)
    for part in parts:
        bits[part.positions.astype(np.intp) + (part.first * BLOCK_UNITS - low)] = True
    packed = np.packbits(bits, bitorder="little")
    raw[: packed.size] = packed
    return low, units, Encoded(form, count, torch.from_numpy(raw))
