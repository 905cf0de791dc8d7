"""Encoded bytes become places and values again. They come from elsewhere, so all that they say is checked."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ckpt_transport.deltas import host_decoding, torch_decoding
from ckpt_transport.deltas.sections import UNIT_DTYPES, block_count, sections
from ckpt_transport.deltas.torch_encoding import units_of
from ckpt_transport.errors import CheckpointError
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
    if unit not in UNIT_DTYPES or nbytes < 0 or nbytes % unit or not 0 <= count <= nbytes // unit:
        raise CheckpointError(f"a delta claims {count} elements of {unit} bytes in a range of {nbytes} bytes")
    units = nbytes // unit
    if form is DeltaForm.WHOLE and count != units:
        raise CheckpointError(f"a delta carries a range of {units} elements whole, and claims {count}")
    if not count:
        if raw.numel():
            raise CheckpointError(f"a delta without elements has {raw.numel()} bytes")
        return Decoded(raw.new_empty(0, dtype=torch.int64), raw.new_empty(0, dtype=UNIT_DTYPES[unit]))
    at = sections(form, unit, units, count)
    if raw.numel() != at.end:
        raise CheckpointError(f"a delta of {count} elements as {form.value} takes {at.end} bytes and not {raw.numel()}")
    decoding = host_decoding if raw.is_cpu else torch_decoding
    match form:
        case DeltaForm.LIST:
            places = decoding.listed(raw[: 4 * block_count(units)], raw[at.places :][: 2 * count], units)
        case DeltaForm.MASK:
            places = decoding.masked(raw[: -(-units // 8)], units, count)
        case DeltaForm.WHOLE:
            places = torch.arange(units, device=raw.device)
    return Decoded(places, units_of(raw[at.values :], unit).clone())
