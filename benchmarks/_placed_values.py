"""Makes weights whose elements say where they belong, so that a row or a column in a wrong place is seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks._models import VALUES, Shapes


def placed(index: int, version: int, shape: torch.Size, device: torch.device, first: int = 0) -> torch.Tensor:
    """Rows of a tensor in BF16.

    Args:
        index: of the tensor among the others.
        version: whose values it has.
        shape: of these rows.
        device: on which they are.
        first: the first of them in the whole tensor.
    """
    rows = (torch.arange(first, first + shape[0], device=device) * 7 + index * 11 + version) % VALUES
    values = rows.to(torch.int16)
    for size in shape[1:]:
        values = values.unsqueeze(-1) + ((torch.arange(size, device=device) * 3) % VALUES).to(torch.int16)
    return values.remainder_(VALUES).to(torch.bfloat16)


def whole(shapes: Shapes, version: int, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a version, made one by one."""
    for index, (name, shape) in enumerate(shapes.items()):
        yield name, placed(index, version, torch.Size(shape), device)


def load_whole(worker: Any, shapes: Shapes, version: int) -> None:
    """Have a worker of vLLM give a whole version to the model's own loader."""
    device = next(worker.model_runner.get_model().parameters()).device
    worker.reload_weights(weights_iterator=whole(shapes, version, device))
