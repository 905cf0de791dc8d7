"""What differs between two versions of a range is found and encoded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ckpt_transport.deltas.sections import BLOCK_UNITS, UNIT_DTYPES, block_count, densest, sections
from ckpt_transport.planning import DeltaForm


@dataclass(frozen=True)
class Encoded:
    """What differs in a range.

    Attributes:
        form: how it is encoded.
        count: how many elements are carried: those that differ, or all of a range that is carried whole.
        raw: the bytes, on the device of what was compared; nothing where nothing differs.
    """

    form: DeltaForm
    count: int
    raw: torch.Tensor


def encode(base: torch.Tensor, new: torch.Tensor, unit: int) -> Encoded:
    """Encode what differs, in the form that takes the fewest bytes.

    Args:
        base, new: uint8, one-dimensional, contiguous, of equal length, on one device.
        unit: bytes of an element: 1, 2, 4 or 8. The length is a multiple of it.
    """
    old, now = (units_of(each, unit) for each in (base, new))
    differ = old != now
    found = differ.nonzero().squeeze(1)
    if not found.numel():
        return Encoded(DeltaForm.LIST, 0, new.new_empty(0))
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


def units_of(raw: torch.Tensor, unit: int) -> torch.Tensor:
    """The units of bytes, as integers; a copy where they do not lie at multiples of their size."""
    if not raw.numel():
        return raw.new_empty(0, dtype=UNIT_DTYPES[unit])
    aligned = raw if raw.data_ptr() % unit == 0 and raw.storage_offset() % unit == 0 else raw.clone()
    return aligned.view(UNIT_DTYPES[unit])
