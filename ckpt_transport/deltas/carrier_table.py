"""What kernels are told of carriers: where each lies, and which rows its elements may meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.deltas.element_map import ElementMap
from ckpt_transport.deltas.lies import check_claims
from ckpt_transport.deltas.sections import BLOCK_UNITS, block_count, sections
from ckpt_transport.memory.table import put, record_use
from ckpt_transport.planning import Carrier, DeltaForm

FORMS = {DeltaForm.LIST: 0, DeltaForm.MASK: 1, DeltaForm.WHOLE: 2}
ALIGNMENT = 8
WORD_BITS = 32
NOWHERE = -(1 << 62)
"""The bit of what is not marked."""

Numbers = npt.NDArray[np.int64]
Group = tuple[ElementMap, Sequence[Carrier]]
"""Carriers of one range, and what knows where their elements go."""


class CarrierTable(NamedTuple):
    """Carriers of one size of elements; :mod:`ckpt_transport.deltas.locating_kernels` says what tables hold.

    Attributes:
        groups: the carriers of each range.
        firsts: the number of each carrier's first block, and how many blocks there are.
        bits, marks: the bit of each carrier's first unit, and how many bits there are.
        carriers, carrier_of: the table, and of which carrier each block is.
        parts, part_of: the same of parts.
        read: memory that the tables point to.
    """

    groups: Sequence[Sequence[Carrier]]
    firsts: Numbers
    bits: Numbers
    marks: int
    carriers: torch.Tensor
    carrier_of: torch.Tensor
    parts: torch.Tensor
    part_of: torch.Tensor
    read: Sequence[torch.Tensor]

    @classmethod
    def of(cls, groups: Sequence[Group], raw: Mapping[str, torch.Tensor], device: torch.device) -> CarrierTable:
        """Of groups whose elements have one size.

        Raises:
            CheckpointError: their bytes cannot be what they claim to be.
        """
        carriers = [each for _, group in groups for each in group]
        for each in carriers:
            check_claims(raw[each.name].numel(), each.form, each.unit, each.nbytes, each.count)
        brought = [_aligned(raw[each.name]) for each in carriers]
        blocks = np.array([block_count(each.nbytes // each.unit) for each in carriers], np.int64)
        firsts = np.concatenate([[0], blocks.cumsum()])
        bits, marks = _bits_of([group for _, group in groups])
        rows = [
            [FORMS[each.form], *_sections_of(each, bytes_), each.nbytes // each.unit, each.count, first, bit]
            for each, bytes_, first, bit in zip(carriers, brought, firsts.tolist(), bits, strict=False)
        ]
        parts, lengths, near = _parts_of(groups, blocks)
        carrier_of = put(np.repeat(np.arange(len(blocks)), blocks), device)
        alone = np.array_equal(parts[:, 0], np.arange(len(blocks)))
        part_of = carrier_of if alone else put(np.repeat(np.arange(len(parts)), lengths), device)
        return cls(
            [group for _, group in groups],
            firsts,
            np.array(bits, np.int64),
            marks,
            put(np.array(rows, np.int64), device),
            carrier_of,
            put(parts, device),
            part_of,
            [*brought, *near],
        )

    def record_use(self) -> None:
        """Have all memory that kernels read stay until what is enqueued now on the current stream has ended."""
        record_use(self.carriers, self.carrier_of, self.parts, self.part_of, *self.read)


def _aligned(raw: torch.Tensor) -> torch.Tensor:
    return raw if raw.data_ptr() % ALIGNMENT == 0 else raw.clone()


def _sections_of(carrier: Carrier, raw: torch.Tensor) -> list[int]:
    """Where each section lies."""
    at = sections(carrier.form, carrier.unit, carrier.nbytes // carrier.unit, carrier.count)
    return [raw.data_ptr() + each for each in (0, at.places, at.values)]


def _bits_of(groups: Sequence[Sequence[Carrier]]) -> tuple[list[int], int]:
    """Of each carrier that is not alone in its range, a bit for its first unit; and the bits of all."""
    bits: list[int] = []
    end = 0
    for group in groups:
        if len(group) == 1:
            bits.append(NOWHERE)
            continue
        low = min(carrier.offset for carrier in group)
        bits += [end + (carrier.offset - low) // carrier.unit for carrier in group]
        high = max(carrier.offset + carrier.nbytes for carrier in group)
        end += -(-(high - low) // (group[0].unit * WORD_BITS)) * WORD_BITS
    return bits, end


def _parts_of(groups: Sequence[Group], blocks: Numbers) -> tuple[Numbers, Numbers, list[torch.Tensor]]:
    """Parts, how many blocks each has, and the tables of layers.

    There is a part for each carrier and each layer that it may meet, one at least. The first of a carrier has all of
    its blocks, which are checked then; others have those that meet a row.
    """
    found: list[Numbers] = []
    tables: list[torch.Tensor] = []
    number = 0
    for _, same in groupby(groups, key=lambda group: id(group[0])):
        of_one = list(same)
        known, carriers = of_one[0][0], [each for _, group in of_one for each in group]
        origins, layers = known.near(carriers)
        block_bytes = np.array([each.unit for each in carriers], np.int64) * BLOCK_UNITS
        numbers = np.arange(number, number + len(carriers))
        number += len(carriers)
        is_first = np.ones(len(carriers), np.bool_)
        for near in layers:
            which = np.flatnonzero(near.first < near.last)
            begins = np.maximum((near.low - origins) // block_bytes, 0)
            ends = np.minimum(-((origins - near.high) // block_bytes), blocks[numbers])
            begins, ends = np.where(is_first, 0, begins)[which], np.where(is_first, blocks[numbers], ends)[which]
            is_first[which] = False
            rows = near.table.data_ptr(), near.rows, near.first[which], near.last[which], near.dimensions
            found.append(_columns(numbers[which], origins[which], *rows, near.depth[which], begins, ends - begins))
            tables.append(near.table)
        which = np.flatnonzero(is_first)
        found.append(_columns(numbers[which], origins[which], 0, 0, 0, 0, 0, 0, 0, blocks[numbers[which]]))
    parts = np.concatenate(found)
    lengths = parts[:, -1]
    parts = np.column_stack([parts[:, :-2], lengths.cumsum() - lengths, parts[:, -2]])
    return np.ascontiguousarray(parts), lengths, tables


def _columns(*columns: Numbers | int) -> Numbers:
    return np.stack(np.broadcast_arrays(*columns), axis=1)
