"""Encoded bytes become places and values again. They come from elsewhere, so all that they say is checked."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ckpt_transport.deltas import torch_decoding
from ckpt_transport.deltas.all_cores import by_all_cores
from ckpt_transport.deltas.carried_blocks import CarriedBlocks
from ckpt_transport.deltas.lies import check_claims
from ckpt_transport.deltas.sections import UNIT_DTYPES, block_count, sections
from ckpt_transport.deltas.torch_encoding import units_of
from ckpt_transport.planning import DeltaForm


class Decoded(NamedTuple):
    """The elements of a carrier, on the device of its bytes.

    Attributes:
        places: which units of the range, ascending; int64.
        values: of the integer type of the unit's size, in memory of their own.
    """

    places: torch.Tensor
    values: torch.Tensor


def decode(raw: torch.Tensor, form: DeltaForm, unit: int, nbytes: int, count: int) -> Decoded:
    """Decode what :func:`~ckpt_transport.deltas.encode` has made of a range of ``nbytes`` bytes.

    It takes memory in proportion to the bytes that are there, whatever ``count`` and ``nbytes`` claim.

    Raises:
        CheckpointError: the bytes are not what they claim to be. Its message says in what.
    """
    check_claims(raw.numel(), form, unit, nbytes, count)
    if not count:
        return Decoded(raw.new_empty(0, dtype=torch.int64), raw.new_empty(0, dtype=UNIT_DTYPES[unit]))
    if raw.is_cpu:
        return _on_host(CarriedBlocks(raw, form, unit, nbytes, count), count)
    units = nbytes // unit
    at = sections(form, unit, units, count)
    match form:
        case DeltaForm.LIST:
            places = torch_decoding.listed(raw[: 4 * block_count(units)], raw[at.places :][: 2 * count], units)
        case DeltaForm.MASK:
            places = torch_decoding.masked(raw[: -(-units // 8)], units, count)
        case DeltaForm.WHOLE:
            places = torch.arange(units, device=raw.device)
    return Decoded(places, units_of(raw[at.values :], unit).clone())


def _on_host(blocks: CarriedBlocks, count: int) -> Decoded:
    places = np.empty(count, np.int64)
    values = np.empty(count, f"u{blocks.unit}")

    def read(low: int, high: int) -> None:
        some = slice(int(blocks.edges[low]), int(blocks.edges[high]))
        found = blocks.read(low, high)
        np.add(found.places, found.first, out=places[some])
        values[some] = found.values

    by_all_cores(lambda group: read(*group), blocks.groups())
    return Decoded(torch.from_numpy(places), torch.from_numpy(values).view(UNIT_DTYPES[blocks.unit]))
