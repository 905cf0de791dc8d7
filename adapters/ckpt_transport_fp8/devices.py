"""Where maxima and elements are computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ckpt_transport_fp8 import cpu
from ckpt_transport_fp8.computed import Computed, OnCpu
from ckpt_transport_fp8.part import Part


def choose(tensors: Iterable[torch.Tensor]) -> torch.device:
    """The first GPU that holds one of ``tensors``, else the current one, else the CPU."""
    for tensor in tensors:
        if tensor.is_cuda:
            return tensor.device
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def computed_on(device: torch.device, parts: Sequence[Part]) -> Computed:
    """``parts``, to be computed on ``device``."""
    if device.type == "cpu":
        return OnCpu(parts, device)
    from ckpt_transport_fp8.cuda import OnCuda

    return OnCuda(parts, device)


def largest(matrices: Sequence[torch.Tensor], groups: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """As :func:`ckpt_transport_fp8.cpu.largest`, each where its matrix is; the results are on the CPU."""
    found: dict[int, torch.Tensor] = {}
    for device in {matrix.device for matrix in matrices}:
        numbers = [number for number, matrix in enumerate(matrices) if matrix.device == device]
        search = cpu.largest
        if device.type != "cpu":
            from ckpt_transport_fp8 import cuda

            search = cuda.largest
        results = search([matrices[number] for number in numbers], [groups[number] for number in numbers])
        found.update(zip(numbers, results, strict=True))
    return [found[number] for number in range(len(matrices))]
