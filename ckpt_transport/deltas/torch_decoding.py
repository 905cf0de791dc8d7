"""Torch's operations find the places of encoded elements on any device."""

from __future__ import annotations

import torch

from ckpt_transport.deltas.lies import wrong_counts, wrong_mask, wrong_places
from ckpt_transport.deltas.sections import BLOCK_UNITS
from ckpt_transport.deltas.torch_encoding import units_of


def listed(counts: torch.Tensor, places: torch.Tensor, units: int) -> torch.Tensor:
    """The places of a list, from the bytes of its first two sections. There is at least one.

    Raises:
        CheckpointError: they do not ascend within the range, or are others than were counted.
    """
    each, found = units_of(counts, 4).long(), units_of(places, 2).long() & (BLOCK_UNITS - 1)
    if bool(((each < 0) | (each > BLOCK_UNITS)).any()) or int(each.sum()) != len(found):
        raise wrong_counts(len(found))
    starts = torch.arange(len(each), device=each.device) * BLOCK_UNITS
    found += torch.repeat_interleave(starts, each, output_size=len(found))
    if not bool((found[1:] > found[:-1]).all() & (found[-1] < units)):
        raise wrong_places(units)
    return found


def masked(mask: torch.Tensor, units: int, count: int) -> torch.Tensor:
    """The places of a mask, from the bytes of its first section.

    Raises:
        CheckpointError: it has another number of bits, or some outside the range.
    """
    bits = (mask.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=mask.device) & 1).flatten()
    if int(bits.sum(dtype=torch.int64)) != count or bool(bits[units:].any()):
        raise wrong_mask(units, count)
    return bits.nonzero().squeeze(1)
