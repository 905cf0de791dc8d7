"""Tensors that are looked at again and again mostly have the form that they had: one call tells that of all of them.

Source: torch/csrc/dynamo/guards.cpp, TensorGuards, by which torch.compile looks whether its inputs are as they were. It
keeps no tensor, and takes each only once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any, Self

import torch

_TensorGuards: Any = getattr(getattr(torch._C, "_dynamo", None), "guards", None)
_TensorGuards = getattr(_TensorGuards, "TensorGuards", None)
"""Any, and None where torch has none any more: it is no part of its public interface."""

_is_nested = attrgetter("is_nested")


def any_nested(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether there is a nested tensor among these. Asked for its strides, as guards ask, torch ends the process."""
    return any(map(_is_nested, tensors))


class SameForm:
    """Tells that tensors have the form that others had: class, dtype, shape, strides, device, and what torch says of
    conjugate and negative views and of inference mode.

    That it says no proves nothing: a tensor may just want a gradient now, which it did not.

    Args:
        guards: torch's own.
        distinct: the numbers of all but those that are another one once more; None for all.
        first: of each tensor, the number of the first one that is the same object.
    """

    def __init__(self, guards: Any, distinct: Sequence[int] | None, first: Sequence[int]) -> None:
        self._guards, self._distinct, self._first = guards, distinct, first

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> Self | None:
        """That of these; None where this torch cannot tell, as of nested tensors."""
        if _TensorGuards is None or any_nested(tensors):
            return None
        numbers: dict[int, int] = {}
        first = list(map(numbers.setdefault, map(id, tensors), range(len(tensors))))
        distinct = list(numbers.values()) if len(numbers) < len(tensors) else None
        some = tensors if distinct is None else [tensors[number] for number in distinct]
        with torch.no_grad():
            guards = _TensorGuards(
                *some,
                dynamic_dims_sizes=[list(tensor.size()) for tensor in some],
                dynamic_dims_strides=[list(tensor.stride()) for tensor in some],
            )
        return cls(guards, distinct, first)

    def is_that_of(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether as many tensors surely have it. Where they come from outside, look first for :func:`any_nested`."""
        if len(tensors) != len(self._first):
            return False
        if self._distinct is not None:
            if any(tensor is not tensors[number] for tensor, number in zip(tensors, self._first, strict=True)):
                return False
            tensors = [tensors[number] for number in self._distinct]
        with torch.no_grad():
            return bool(self._guards.check(*tensors))
