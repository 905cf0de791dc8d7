"""Where maxima and elements are computed, and rows are put in their places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch

from ckpt_transport_fp8.computed import Compute, OnCpu
from ckpt_transport_fp8.part import Part, Parts
from ckpt_transport_fp8.rows import Places


def choose(devices: Iterable[torch.device]) -> torch.device:
    """The first GPU of ``devices``, where tensors lie, else the current one, else the CPU."""
    for device in devices:
        if device.type == "cuda":
            return device
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def numbered(device: torch.device) -> torch.device:
    """``device`` as tensors on it say it: the current GPU has a number, too."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def computed_on(device: torch.device, parts: Sequence[Part]) -> Compute:
    """``parts``, ascending, of any version, to be computed on ``device``."""
    if device.type == "cpu":
        return partial(OnCpu, Parts(parts), device)
    from ckpt_transport_fp8.cuda import computed_on_gpu

    return computed_on_gpu(device, parts)


def places_on(device: torch.device, offsets: Sequence[int]) -> Places:
    """Where rows lie in an extent, to be put there on ``device``; see :class:`~ckpt_transport_fp8.rows.Places`."""
    if device.type == "cpu":
        return Places(offsets, device)
    from ckpt_transport_fp8.cuda import places_on_gpu

    return places_on_gpu(device, offsets)
