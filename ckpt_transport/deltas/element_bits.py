"""Dense elements of a range stay bits, which are cut, shifted and joined without a place for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.deltas.element_list import ElementList, encode_list
from ckpt_transport.deltas.encoded import Encoded
from ckpt_transport.deltas.sections import BLOCK_UNITS, block_count, sections
from ckpt_transport.planning import DeltaForm

Bools = npt.NDArray[np.bool_]
Values = npt.NDArray[np.unsignedinteger[Any]]


class ElementBits(NamedTuple):
    """Some elements of a range, one at least.

    Attributes:
        first: the unit of the first bit.
        packed: a bit for each unit, the lowest of a byte first.
        values: what they become.
    """

    first: int
    packed: npt.NDArray[np.uint8]
    values: Values

    @classmethod
    def of(cls, first: int, bits: Bools, values: Values) -> ElementBits:
        """Of units from ``first`` on, which have a value each where their bit is set."""
        return cls(first, np.packbits(bits, bitorder="little"), values)

    @property
    def ends(self) -> tuple[int, int]:
        """The first unit with an element, and the last one."""
        held = np.flatnonzero(self.packed)
        first, last = int(held[0]), int(held[-1])
        lowest = int(self.packed[first]) & -int(self.packed[first])
        return (
            self.first + 8 * first + lowest.bit_length() - 1,
            self.first + 8 * last + int(self.packed[last]).bit_length() - 1,
        )

    @property
    def listed(self) -> ElementList:
        """The same elements as a list."""
        places = np.flatnonzero(np.unpackbits(self.packed, bitorder="little"))
        places += self.first % BLOCK_UNITS
        blocks = block_count(int(places[-1]) + 1)
        counts = np.diff(np.searchsorted(places, np.arange(blocks + 1) * BLOCK_UNITS))
        return ElementList(self.first // BLOCK_UNITS, counts, places.astype(np.uint16), self.values)


def encode_bits(parts: Sequence[ElementBits], unit: int, nbytes: int) -> tuple[int, int, Encoded]:
    """As :func:`~ckpt_transport.deltas.element_list.encode_list`."""
    low, high = parts[0].ends[0], parts[-1].ends[1]
    count, units = sum(len(part.values) for part in parts), high + 1 - low
    at = sections(DeltaForm.MASK, unit, units, count)
    begin = low // BLOCK_UNITS * BLOCK_UNITS
    most = min(nbytes // unit, (high // BLOCK_UNITS + 1) * BLOCK_UNITS) - begin
    if count == units or sections(DeltaForm.LIST, unit, most, count).end <= at.end:
        return encode_list([part.listed for part in parts], unit, nbytes)
    raw = np.empty(at.end, np.uint8)
    raw[: at.values] = 0
    mask = raw[: -(-units // 8)]
    for part in parts:
        _put(part.packed, part.first - low, mask)
    np.concatenate([part.values for part in parts], out=raw[at.values :].view(f"u{unit}"))
    return low, units, Encoded(DeltaForm.MASK, count, torch.from_numpy(raw))


def _put(packed: npt.NDArray[np.uint8], bit: int, mask: npt.NDArray[np.uint8]) -> None:
    """Set bits of a mask from one on. Those that lie outside are not set."""
    byte, shift = bit >> 3, bit & 7
    _or(packed << np.uint8(shift), byte, mask)
    if shift:
        _or(packed >> np.uint8(8 - shift), byte + 1, mask)


def _or(packed: npt.NDArray[np.uint8], byte: int, mask: npt.NDArray[np.uint8]) -> None:
    packed = packed[max(-byte, 0) :]
    there = mask[max(byte, 0) :][: len(packed)]
    there |= packed[: len(there)]
