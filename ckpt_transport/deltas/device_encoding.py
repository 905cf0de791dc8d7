"""A GPU finds what differs by Triton kernels: they count it, and write it when it is known how."""

from __future__ import annotations

from functools import cache

import torch

from ckpt_transport.deltas.encoded import Encoded
from ckpt_transport.deltas.sections import BLOCK_UNITS, block_count, densest, sections
from ckpt_transport.deltas.torch_encoding import units_of
from ckpt_transport.memory import Launch
from ckpt_transport.planning import DeltaForm

WARPS = 8
STEP = 2048
"""Units that a program looks at at a time."""


def encode_by_kernels(base: torch.Tensor, new: torch.Tensor, unit: int) -> Encoded:
    """As :func:`ckpt_transport.deltas.encode`, on the current device. It waits until differences are counted."""
    if not new.numel():
        return Encoded.nothing(new.device)
    old, now = (units_of(each, unit) for each in (base, new))
    units, blocks = len(now), block_count(len(now))
    counts = torch.empty(blocks, dtype=torch.int32, device=new.device)
    _kernel_on(new.device, now.dtype, "count_differing")(blocks, old, now, counts, units)
    count = int(counts.sum())
    if not count:
        return Encoded.nothing(new.device)
    form = densest(unit, units, count)
    if form is DeltaForm.WHOLE:
        return Encoded(form, units, new.clone())
    at = sections(form, unit, units, count)
    raw = new.new_zeros(at.end)
    firsts, values = counts.cumsum(0) - counts, raw[at.values :].view(now.dtype)
    if form is DeltaForm.LIST:
        raw[: 4 * blocks].view(torch.int32).copy_(counts)
        places = raw[at.places :][: 2 * count].view(torch.int16)
        _kernel_on(new.device, now.dtype, "write_listed")(blocks, old, now, firsts, places, values, units)
    else:
        _kernel_on(new.device, now.dtype, "write_masked")(blocks, old, now, firsts, raw, values, units)
    return Encoded(form, count, raw)


@cache
def _kernel_on(device: torch.device, dtype: torch.dtype, name: str) -> Launch:
    """A kernel as it is compiled for one device and type. Only where Triton is installed it can be imported."""
    from ckpt_transport.deltas import encoding_kernels

    return Launch(getattr(encoding_kernels, name), WARPS, BLOCK_UNITS=BLOCK_UNITS, STEP=STEP)
