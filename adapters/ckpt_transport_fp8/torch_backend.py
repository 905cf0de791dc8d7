"""Finds largest magnitudes and casts elements by torch's operations, on a GPU or on all cores of the CPU."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch

from ckpt_transport_fp8.backend import Computation
from ckpt_transport_fp8.computed_tensor import ComputedTensor
from ckpt_transport_fp8.parallel import run_parallel

INTEGER = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
"""Integers whose order, without the sign bit, is that of the magnitudes; infinity and NaN come last."""

Step = Callable[[], None]


class AtOnce(NamedTuple):
    """How many elements a step works on."""

    search: int
    cast: int


AT_ONCE = {"cpu": AtOnce(2 << 20, 256 << 10), "cuda": AtOnce(64 << 20, 4 << 20)}
"""On a CPU as many as a core's cache holds, on a GPU as many as keep it busy. A cast takes up to 14 bytes for each."""


class TorchBackend:
    """Computes tensors by torch's operations: a :class:`~ckpt_transport_fp8.backend.Backend` for every device.

    Largest magnitudes are found where the sources lie, so that these need not be moved for it.

    Args:
        tensors: what is computed, ascending in the extent.
        device: where elements are computed.
    """

    def __init__(self, tensors: Sequence[ComputedTensor], device: torch.device) -> None:
        self._tensors, self._device = tensors, device
        self._offsets = [tensor.offset for tensor in tensors]
        self._scaled: defaultdict[torch.device, list[ComputedTensor]] = defaultdict(list)
        for tensor in tensors:
            self._scaled[tensor.source_device].append(tensor)

    def bind(self, sources: Sequence[torch.Tensor]) -> Computation:
        return Computation(partial(self._find_amax, sources), partial(self._fill, sources))

    def _find_amax(self, sources: Sequence[torch.Tensor], amax: torch.Tensor) -> None:
        for device, tensors in self._scaled.items():
            there = torch.zeros_like(amax, device=device)
            found: list[tuple[torch.Tensor, torch.Tensor]] = []
            _run(device, (step for tensor in tensors for step in _searches(tensor, sources, there, found)))
            for groups, largest in found:  # not in the steps: several may have elements of one group
                torch.maximum(groups, largest, out=groups)
            torch.maximum(amax, there.to(amax.device), out=amax)

    def _fill(self, sources: Sequence[torch.Tensor], bucket: torch.Tensor, offset: int, factors: torch.Tensor) -> None:
        within = self._within(offset, offset + bucket.numel())
        _run(self._device, (step for tensor in within for step in _casts(tensor, sources, bucket, offset, factors)))

    def _within(self, begin: int, end: int) -> Iterator[ComputedTensor]:
        """Yield the tensors that have bytes between ``begin`` and ``end``."""
        for number in range(max(bisect_right(self._offsets, begin) - 1, 0), len(self._tensors)):
            tensor = self._tensors[number]
            if tensor.offset >= end:
                return
            if tensor.end > begin:
                yield tensor


def _run(device: torch.device, steps: Iterable[Step]) -> None:
    """Run ``steps`` on the device: on a GPU in their order, on a CPU in any."""
    if device.type == "cpu":
        run_parallel(steps)
        return
    for step in steps:
        step()


def _searches(
    tensor: ComputedTensor,
    sources: Sequence[torch.Tensor],
    amax: torch.Tensor,
    found: list[tuple[torch.Tensor, torch.Tensor]],
) -> Iterator[Step]:
    """Yield the steps that find the largest magnitudes of a tensor.

    Each appends to ``found`` a view of ``amax``, those groups that it has searched, and what it has found there.
    """
    source = tensor.source(sources)
    for rectangle in tensor.rectangles(tensor.offset, tensor.end, AT_ONCE[source.device.type].search):
        groups = tensor.own_groups(amax, rectangle.rows)
        yield partial(_search, source[rectangle.rows], tensor.group, groups, found)


def _search(
    source: torch.Tensor,
    group: tuple[int, int],
    groups: torch.Tensor,
    found: list[tuple[torch.Tensor, torch.Tensor]],
) -> None:
    (rows, columns), (high, wide) = source.shape, group
    integer = INTEGER[source.dtype]
    magnitudes = source.view(integer) & torch.iinfo(integer).max
    if missing := -columns % wide:
        magnitudes = torch.nn.functional.pad(magnitudes, (0, missing))
    by_row = magnitudes.view(rows, -1, wide).amax(2)
    largest = by_row.view(-1, min(high, rows), by_row.shape[1]).amax(1)
    found.append((groups, largest.view(source.dtype).to(torch.float32)))


def _casts(
    tensor: ComputedTensor, sources: Sequence[torch.Tensor], bucket: torch.Tensor, offset: int, factors: torch.Tensor
) -> Iterator[Step]:
    """Yield the steps that compute what lies of a tensor in a bucket."""
    source = tensor.source(sources)
    most = AT_ONCE[bucket.device.type].cast
    for rows, columns, start, end in tensor.rectangles(offset, offset + bucket.numel(), most):
        part = source[rows, columns]
        target = bucket[start:end].view(tensor.dtype).view(part.shape)
        own = tensor.own_groups(factors, rows)
        yield partial(_cast, part, own, tensor.group[1], columns, target)


def _cast(source: torch.Tensor, factors: torch.Tensor, wide: int, columns: slice, target: torch.Tensor) -> None:
    elements = source.to(target.device, non_blocking=target.is_cuda).to(torch.float32)
    if factors.shape[1] > 1:
        factors = factors.repeat_interleave(wide, dim=1)[:, columns]
    by_group = elements.view(len(factors), -1, elements.shape[1])
    product = torch.mul(by_group, factors.unsqueeze(1), out=None if elements is source else by_group)
    target.copy_(product.view(target.shape))
