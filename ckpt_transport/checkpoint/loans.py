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
from ckpt_transport.checkpoint.dtensors import PlainTensors, plain_tensors
from ckpt_transport.checkpoint.lent_memory import LentMemory
from ckpt_transport.checkpoint.mapping import MappedTensors
from ckpt_transport.checkpoint.scattered import Loan, ScatteredTensors, are_runs_of_bytes, lent
from ckpt_transport.checkpoint.watched import Watching
from ckpt_transport.memory import SameForm, any_nested
from ckpt_transport.planning.values.manifest import Conversion, PlacedTensor

_form = attrgetter("dtype", "shape", "device")


class _Given:
    """What was given, as far as the layout of a loan depends on it. It keeps no tensor.

    Attributes:
        names: of the tensors.
        cuts: where this rank's part of each is cut from, as of :class:`PlainTensors`.
        forms: dtype, shape and device of each, all of them :func:`runs of bytes <are_runs_of_bytes>`, and whether torch
            counts writes to it.
        addresses: of each.
        first: the number of the first tensor that begins at the same address, of each: names of one tensor share it.
    """

    def __init__(self, names: list[object], plain: PlainTensors) -> None:
        self.names, (values, self.cuts) = names, plain
        self.forms, self.addresses = _forms_of(values), _addresses_of(values)
        self.first = _first_of(self.addresses)
        self._same_form = SameForm.of(values)

    def is_form_of(self, values: Sequence[torch.Tensor]) -> bool:
        """Whether tensors surely have this form. That it says no proves nothing."""
        return self._same_form is not None and not any_nested(values) and self._same_form.is_that_of(values)

    def addresses_again(self, names: list[object], plain: PlainTensors) -> list[int] | None:
        """The addresses of tensors of the same names, cuts, forms and ties; None of others."""
        values = plain.values
        try:
            if names != self.names or plain.cuts != self.cuts or not self._have_same_form(values):
                return None
            addresses = _addresses_of(values)
        except RuntimeError:  # of a kind that has no memory of its own; who takes it in says so
            return None
        if addresses == self.addresses:
            return self.addresses
        if addresses.count(0) > self.addresses.count(0):  # memory was freed; who takes it in says which
            return None
        return addresses if _first_of(addresses) == self.first else None

    def _have_same_form(self, values: Sequence[torch.Tensor]) -> bool:
        if self.is_form_of(values):
            return True
        if _forms_of(values) != self.forms or not are_runs_of_bytes(values):
            return False
        self._same_form = SameForm.of(values)
        return True


class _Known(NamedTuple):
    """What is kept of the last loan.

    Attributes:
        how: what else it depended on.
        given: what it was made of.
        order: for each tensor of the loan, which one it is of those given; None where they are these, in their order.
        placed, conversions, same, replicated: as those of :class:`Loan`.
        watching: how its tensors were watched.
        memory: where they were.
    """

    how: object
    given: _Given
    order: list[int] | None
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
        plain = plain_tensors(list(tensors.values())) if isinstance(tensors, Mapping) else None
        if plain is None:
            return borrow(*make())
        assert isinstance(tensors, Mapping)
        names, known = list(tensors), self._known
        addresses = None
        if known is not None and known.how == how:
            addresses = known.given.addresses_again(names, plain)
        if known is not None and addresses is not None:
            return self._again(known, plain.values, addresses)
        mapped = make()
        loan = borrow(*mapped)
        self._known = _remembered(mapped, loan, how, names, plain)
        return loan

    def knows(self, values: Sequence[torch.Tensor]) -> bool:
        """Whether the last loan was made of tensors of this form, so that these can be lent as well."""
        return self._known is not None and self._known.given.is_form_of(values)

    def _again(self, known: _Known, values: Sequence[torch.Tensor], addresses: Sequence[int]) -> Loan:
        tensors, found, memory = values, addresses, known.memory
        if known.order is not None:
            tensors = [values[number] for number in known.order]
            found = [addresses[number] for number in known.order]
        wait_for_writers(memory.devices)
        if found != memory.addresses or not memory.is_there:
            memory = LentMemory(memory.devices, memory.offsets, memory.nbytes, found, memory.sizes, memory.gathered)
            self._known = known._replace(memory=memory)
        return Loan(
            lent(tensors, memory, known.watching), known.placed, known.conversions, known.same, known.replicated
        )


def _forms_of(values: Sequence[torch.Tensor]) -> tuple[list[object], list[bool]]:
    return list(map(_form, values)), list(map(torch.Tensor.is_inference, values))


def _addresses_of(values: Sequence[torch.Tensor]) -> list[int]:
    return list(map(torch.Tensor.data_ptr, values))


def _first_of(addresses: Sequence[int]) -> list[int]:
    numbers: dict[int, int] = {}
    return list(map(numbers.setdefault, addresses, range(len(addresses))))


def _elements_of(tensor: torch.Tensor) -> object:
    """Equal of tensors that are the same elements, where these are runs of bytes."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.device, tensor.is_inference()


def _remembered(
    mapped: MappedTensors, loan: Loan, how: object, names: list[object], plain: PlainTensors
) -> _Known | None:
    """What is kept of a loan; None where it is of others than the tensors that were given, each as it is."""
    values, backing = plain.values, loan.backing
    if not isinstance(backing, ScatteredTensors) or not are_runs_of_bytes(values):
        return None
    of_given, of_lent = (
        [_elements_of(tensor) for tensor in of] for of in (values, (part.tensor for part in mapped.parts))
    )
    numbers = {elements: number for number, elements in enumerate(of_given)}
    order = None if of_lent == of_given else [numbers.get(elements, -1) for elements in of_lent]
    if order is not None and -1 in order:
        return None
    return _Known(
        how,
        _Given(names, plain),
        order,
        loan.tensors,
        loan.conversions,
        loan.same,
        loan.replicated,
        backing.watched.watching,
        backing.place,
    )
