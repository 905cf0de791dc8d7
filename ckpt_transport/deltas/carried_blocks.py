"""A carrier in host memory is read some blocks at a time, so that what is made of them stays in a core's cache."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.deltas.all_cores import by_all_cores
from ckpt_transport.deltas.lies import check_claims, wrong_counts, wrong_mask, wrong_places
from ckpt_transport.deltas.sections import BLOCK_UNITS, block_count, sections
from ckpt_transport.planning import DeltaForm

TOGETHER = 1 << 15
"""About so many elements are read at a time."""
MOST_BLOCKS = 1 << 12
"""So many blocks at most, so that a place is a number of 31 bits."""
MASK_BYTES = BLOCK_UNITS // 8
COUNTED = 16
"""So many blocks of a mask are counted at a time."""

Numbers = npt.NDArray[np.int64]
Places = npt.NDArray[np.int32]
Units = npt.NDArray[np.unsignedinteger[Any]]

ALL_PLACES: Places = np.arange(BLOCK_UNITS, dtype=np.int32)
ALL_PLACES.flags.writeable = False


class SomeBlocks(NamedTuple):
    """Elements of blocks that follow each other.

    Attributes:
        first: the unit of the range that places are counted from: the first of these blocks.
        places: of the elements, ascending.
        values: what they become, in the memory of the carrier.
    """

    first: int
    places: Places
    values: Units


class CarriedBlocks:
    """What :func:`~ckpt_transport.deltas.encode` has made of a range of ``nbytes`` bytes.

    Args:
        raw: the bytes, in host memory.
        form, unit, nbytes, count: what they claim to be. It takes memory in proportion to the bytes that are there.

    Attributes:
        unit: bytes of an element.
        edges: with which element each block begins, and where the last one ends.

    Raises:
        CheckpointError: the bytes are not what they claim to be. Its message says in what.
    """

    def __init__(self, raw: torch.Tensor, form: DeltaForm, unit: int, nbytes: int, count: int) -> None:
        check_claims(raw.numel(), form, unit, nbytes, count)
        self.unit, self._form, self._units = unit, form, nbytes // unit
        if not count:
            self._units, self.edges = 0, np.zeros(1, np.int64)
            return
        at = sections(form, unit, self._units, count)
        if raw.data_ptr() % unit:
            raw = raw.clone()
        self._host = raw.numpy()
        self._values: Units = self._host[at.values :].view(f"u{unit}")
        match form:
            case DeltaForm.LIST:
                self._within = self._host[at.places :][: 2 * count].view(np.uint16)
                counts = self._host[: 4 * block_count(self._units)].view(np.uint32).astype(np.int64)
                if counts.max() > BLOCK_UNITS or counts.sum() != count:
                    raise wrong_counts(count)
            case DeltaForm.MASK:
                outside = int(self._host[-(-self._units // 8) - 1]) >> (self._units - 1) % 8 >> 1
                counts = self._counted()
                if outside or counts.sum() != count:
                    raise wrong_mask(self._units, count)
            case DeltaForm.WHOLE:
                counts = np.full(block_count(self._units), BLOCK_UNITS, np.int64)
                counts[-1] -= len(counts) * BLOCK_UNITS - self._units
        self.edges = np.concatenate([[0], counts.cumsum()])

    def groups(self, elements: int = TOGETHER, most: int = MOST_BLOCKS) -> list[tuple[int, int]]:
        """Blocks in groups of about so many elements: the first block of each, and the one behind the last."""
        blocks = np.arange(len(self.edges) - 1)
        cuts = np.flatnonzero(np.diff(self.edges[:-1] // elements) | np.diff(blocks // most)) + 1
        ends = [0, *cuts.tolist(), len(blocks)]
        return [(low, high) for low, high in pairwise(ends) if self.edges[low] < self.edges[high]]

    def read(self, low: int, high: int) -> SomeBlocks:
        """The elements of blocks from one up to another one, :data:`MOST_BLOCKS` at most.

        Raises:
            CheckpointError: their places do not ascend, or lie outside the range.
        """
        first = low * BLOCK_UNITS
        elements = slice(int(self.edges[low]), int(self.edges[high]))
        values = self.values(low, high)
        match self._form:
            case DeltaForm.LIST:
                counts = np.diff(self.edges[low : high + 1])
                places = np.repeat(np.arange(high - low, dtype=np.int32) * np.int32(BLOCK_UNITS), counts)
                places += self._within[elements]
                ascend = bool((places[1:] > places[:-1]).all())
                if not ascend or (len(places) and int(places[-1]) + first >= self._units):
                    raise wrong_places(self._units)
            case DeltaForm.MASK:
                places = np.flatnonzero(self.bits(low, high)).astype(np.int32)
            case DeltaForm.WHOLE:
                places = ALL_PLACES if len(values) <= BLOCK_UNITS else np.arange(len(values), dtype=np.int32)
                places = places[: len(values)]
        return SomeBlocks(first, places, values)

    def bits(self, low: int, high: int) -> npt.NDArray[np.bool_]:
        """Of a mask, or of a whole range: whether each unit of these blocks is carried."""
        if self._form is DeltaForm.WHOLE:
            return np.ones(int(self.edges[high] - self.edges[low]), np.bool_)
        packed = self._host[low * MASK_BYTES : min(high * MASK_BYTES, -(-self._units // 8))]
        bits = np.unpackbits(packed, count=min(8 * packed.size, self._units - low * BLOCK_UNITS), bitorder="little")
        return bits.view(np.bool_)

    def values(self, low: int, high: int) -> Units:
        """What the elements of these blocks become."""
        return self._values[int(self.edges[low]) : int(self.edges[high])]

    def _counted(self) -> Numbers:
        blocks = block_count(self._units)

        def count(low: int) -> Sequence[int]:
            bits = self.bits(low, min(low + COUNTED, blocks))
            return [int(np.count_nonzero(bits[at : at + BLOCK_UNITS])) for at in range(0, len(bits), BLOCK_UNITS)]

        found = by_all_cores(count, range(0, blocks, COUNTED))
        return np.array([each for some in found for each in some], np.int64)
