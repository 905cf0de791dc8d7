"""Torch's operations find and encode what differs on a GPU without Triton."""

from __future__ import annotations

import torch

from ckpt_transport.deltas.encoded import Encoded
from ckpt_transport.deltas.sections import BLOCK_UNITS, UNIT_DTYPES, block_count, densest, sections
from ckpt_transport.planning import DeltaForm


def encode_by_torch(base: torch.Tensor, new: torch.Tensor, unit: int) -> Encoded:
    """As :func:`ckpt_transport.deltas.encode`."""
    old, now = (_units_of(each, unit) for each in (base, new))
    differ = old != now
    found = differ.nonzero().squeeze(1)
    if not found.numel():
        return Encoded.nothing(new.device)
    form = densest(unit, now.numel(), found.numel())
    if form is DeltaForm.WHOLE:
        return Encoded(form, now.numel(), new.clone())
    at = sections(form, unit, now.numel(), found.numel())
    raw = new.new_zeros(at.end)
    if form is DeltaForm.LIST:
        blocks = block_count(now.numel())
        raw[: 4 * blocks].view(torch.int32).copy_(torch.bincount(found // BLOCK_UNITS, minlength=blocks))
        raw[at.places :][: 2 * found.numel()].view(torch.int16).copy_(found)
    else:
        eights = torch.nn.functional.pad(differ, (0, -now.numel() % 8)).view(-1, 8)
        bits = 1 << torch.arange(8, dtype=torch.uint8, device=new.device)
        raw[: len(eights)] = (eights * bits).sum(1, dtype=torch.uint8)
    raw[at.values :].view(now.dtype).copy_(now[found])
    return Encoded(form, found.numel(), raw)


def _units_of(raw: torch.Tensor, unit: int) -> torch.Tensor:
    """The units of bytes, as integers; a copy where they do not lie at multiples of their size."""
    if not raw.numel():
        return raw.new_empty(0, dtype=UNIT_DTYPES[unit])
    aligned = raw if raw.data_ptr() % unit == 0 and raw.storage_offset() % unit == 0 else raw.clone()
    return aligned.view(UNIT_DTYPES[unit])
