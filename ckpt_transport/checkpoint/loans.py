"""A trainer lends much the same tensors at each step of its training: what was found out at one is kept for the next.

What a loan is made of depends on names, types and shapes, which are compared by a few passes in C over all tensors. How
their memory is reached depends on where they lie. Neither keeps a tensor: when a version is unregistered, its owner may
free its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

import torch

from ckpt_transport.checkpoint.borrowing import borrow, wait_for_writers
from ckpt_transport.checkpoint.given import OWN_KINDS
from ckpt_transport.checkpoint.lent_memory import LentMemory
from ckpt_transport.checkpoint.mapping import MappedTensors
from ckpt_transport.checkpoint.scattered import Loan, ScatteredTensors, are_runs_of_bytes, lent
from ckpt_transport.checkpoint.watched import Watched, Watching
from ckpt_transport.planning.values.manifest import Conversion, PlacedTensor

_form = attrgetter("dtype", "shape", "device")


class _Given(NamedTuple):
    """What was given, as far as the layout of a loan depends on it.

    Attributes:
        names: of the tensors.
        forms: dtype, shape and device of each.
        first: the number of the first tensor that begins at the same address, of each: names of one tensor share it.
    """

    names: list[object]
    forms: list[object]
    first: list[int]


class _Known(NamedTuple):
    """What is kept of the last loan.

    Attributes:
        how: what else it depended on.
        given: what it was made of.
        order: for each tensor of the loan, which one it is of those given.
        placed, conversions, same, replicated: as those of :class:`Loan`.
        watching: how its tensors were watched.
        memory: where they were.
    """

    how: object
    given: _Given
    order: list[int]
    placed: Sequence[PlacedTensor]
    conversions: Sequence[Conversion]
    same: tuple[tuple[str, ...], ...]
    replicated: tuple[str, ...]
    watching: Watching
    memory: LentMemory


class Loans:
    """Makes loans, and keeps what it knows of the last one."""

    def __init__(self) -> None:
        self._known: _Known | None = None

    def of(self, tensors: object, how: object, make: Callable[[], MappedTensors]) -> Loan:
        """Borrow these tensors.

        Args:
            tensors: as a trainer gives them.
            how: what else decides what is made of them.
            make: finds that out; called where they are not known.

        Raises: as ``make`` and :func:`borrow`.
        """
        seen = _look(tensors)
        if seen is None:
            return borrow(*make())
        given, values, addresses = seen
        known = self._known
        if known is not None and known.given == given and known.how == how:
            return self._again(known, values, addresses)
        mapped = make()
        loan = borrow(*mapped)
        self._known = _remembered(mapped, loan, how, given, values)
        return loan

    def _again(self, known: _Known, values: Sequence[torch.Tensor], addresses: Sequence[int]) -> Loan:
        tensors = [values[number].detach() for number in known.order]
        memory, found = known.memory, [addresses[number] for number in known.order]
        wait_for_writers(memory.devices)
        if found != memory.addresses or not memory.is_there:
            memory = LentMemory(memory.devices, memory.offsets, memory.nbytes, found, memory.sizes)
            self._known = known._replace(memory=memory)
        watching = known.watching
        if len(watching.counted) < len(tensors) or any(map(torch.Tensor.is_inference, tensors)):
            watching = Watching.of(watching.names, tensors)
        backing = lent(tensors, memory, Watched.so(watching, tensors))
        return Loan(backing, known.placed, known.conversions, known.same, known.replicated)


def _look(tensors: object) -> tuple[_Given, list[torch.Tensor], list[int]] | None:
    """What was given, the tensors, and their addresses; None where not all is as plain as that."""
    if not isinstance(tensors, Mapping):
        return None
    values: list[torch.Tensor] = list(tensors.values())
    if not OWN_KINDS.issuperset(map(type, values)):
        return None
    try:
        addresses = list(map(torch.Tensor.data_ptr, values))
        forms: list[object] = list(map(_form, values))
        if not are_runs_of_bytes(values):
            return None
    except RuntimeError:  # of a kind that has no memory of its own; who takes it in says so
        return None
    numbers: dict[int, int] = {}
    first = list(map(numbers.setdefault, addresses, range(len(addresses))))
    return _Given(list(tensors), forms, first), values, addresses


def _remembered(
    mapped: MappedTensors, loan: Loan, how: object, given: _Given, values: Sequence[torch.Tensor]
) -> _Known | None:
    """What is kept of a loan; None where it is of others than the tensors that were given, each as it is."""
    numbers = {id(tensor): number for number, tensor in enumerate(values)}
    order = [numbers.get(id(part.tensor), -1) for part in mapped.parts]
    if not isinstance(loan.backing, ScatteredTensors) or -1 in order:
        return None
    backing = loan.backing
    return _Known(
        how,
        given,
        order,
        loan.tensors,
        loan.conversions,
        loan.same,
        loan.replicated,
        backing.watched.watching,
        backing.place,
    )
