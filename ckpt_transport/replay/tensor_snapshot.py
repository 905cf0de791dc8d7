"""Notes which tensors a module has at one time, and whether it still has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import cast
from weakref import ref

import torch

from ckpt_transport.errors import UnwritableError, UpdateError
from ckpt_transport.memory import no_collections, why_not_plain
from ckpt_transport.replay.bindings import (
    Fingerprint,
    all_plain,
    fingerprint,
    has_addresses,
    has_fingerprint,
    named_tensors,
    surely_has_fingerprint,
    walks_as_torch_does,
)
from ckpt_transport.replay.module_tables import ModuleTables, identity
from ckpt_transport.replay.table_places import TablePlaces

MOST = 3
"""Names in a message."""

Look = Callable[[], Mapping[str, torch.Tensor]]
"""Finds the tensors of a module that matter, by name; it looks anew each time it is called."""


DependsOn = Callable[[Sequence[torch.nn.Module]], object]
"""Says what a look depends on, of a module and all in it, besides what names are bound to: equal values mean that
nothing of it has changed. None where it depends on more than can be said."""


class TensorSnapshot:
    """The tensors that a module has at one time. As long as it lives no other tensor can take their addresses.

    Args:
        module: whose tensors.
        look: finds those that matter; by default every parameter and buffer that is plain memory.
        known: the fingerprint of an earlier one, which this one has as well, the same object, if nothing has moved.
        refuse: raises where tensors, by name, cannot be what is looked for; called before they are described anew.
        depends_on: where it tells that nothing has changed, ``look`` is not called. By default it is known of no look
            but the default one.

    Attributes:
        fingerprint: where they lie, and in which form; equal ones mean equal places.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        look: Look | None = None,
        known: Fingerprint | None = None,
        refuse: Callable[[Mapping[str, torch.Tensor]], None] = lambda tensors: None,
        depends_on: DependsOn | None = None,
    ) -> None:
        with no_collections():
            self._look, self._takes_all = look or partial(_plain_tensors, module), look is None
            self._bound = ModuleTables(module)
            if depends_on is None and look is None:
                depends_on = _walk_depends_on
            conditions = None if depends_on is None else depends_on(self._bound.modules)
            found = None
            if known is not None and known.places is not None and conditions is not None:
                found = known.places.find(self._bound, conditions)
            if known is not None and found is not None and surely_has_fingerprint(found, known):
                self._values, self.fingerprint, self._registered = cast("list[torch.Tensor]", found), known, True
                return
            tensors = dict(self._look())
            self._values = list(tensors.values())
            self.fingerprint = self._described(tensors, known, refuse)
            self._registered = self._are_registered()
            if known is self.fingerprint and conditions is not None and not known.is_placed:
                self._note_places(tensors, conditions)

    def _described(
        self,
        tensors: Mapping[str, torch.Tensor],
        known: Fingerprint | None,
        refuse: Callable[[Mapping[str, torch.Tensor]], None],
    ) -> Fingerprint:
        if known is not None and tuple(tensors) != known.names:
            known = None
        if known is None or not surely_has_fingerprint(self._values, known):
            refuse(tensors)
            if known is None or not has_fingerprint(self._values, known):
                known = fingerprint(tensors)
        return known

    def _note_places(self, tensors: Mapping[str, torch.Tensor], conditions: object) -> None:
        """Note where tensors were found, which are looked for again, if whoever finds others there finds what a look
        would."""
        self.fingerprint.is_placed = True
        found = set(map(identity, tensors.values()))
        bound = (each for each in self._bound.objects if isinstance(each, torch.Tensor))
        if self._takes_all and not found.issuperset(map(identity, bound)):
            return  # one that is no plain memory may become that
        self.fingerprint.places = TablePlaces.of(self._bound, tensors, conditions)

    @cached_property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """What was found, by name."""
        return dict(zip(self.fingerprint.names, self._values, strict=True))

    @property
    def each(self) -> Sequence[torch.Tensor]:
        """The tensors without their names, in the order of :attr:`tensors`."""
        return self._values

    @cached_property
    def memory(self) -> dict[str, torch.Tensor]:
        """The same as plain tensors without history, to be written."""
        with no_collections():
            return all_plain(self.tensors)

    def moved(self) -> list[str]:
        """Names that are bound to other memory now, to memory in another form, or to none, and those that are new."""
        with no_collections():
            if self._registered and self._bound.stay() and has_fingerprint(self._values, self.fingerprint):
                return []
            before, now = self.fingerprint.by_name(), fingerprint(self._look()).by_name()
        return [name for name in {**before, **now} if before.get(name) != now.get(name)]

    def stays(self) -> bool:
        """Whether names are bound to the same objects at the same addresses: most of :meth:`moved`, in half its time.

        A tensor that took another form where it lies is not noticed.
        """
        with no_collections():
            return self._registered and self._bound.stay() and has_addresses(self._values, self.fingerprint)

    @property
    def look(self) -> Callable[[], bool]:
        """As :meth:`stays`, for others to ask: it keeps no tensor, and is false when nobody has this any more."""
        kept = ref(self)
        return lambda: (snapshot := kept()) is not None and snapshot.stays()

    def check(self) -> None:
        """See that the module still has these tensors.

        Raises:
            UpdateError: names are bound to something else.
        """
        if moved := self.moved():
            raise UpdateError(
                f"{_some(moved)} got other memory while an update was applied, so what was loaded is not used; move, "
                "convert or replace the tensors of a module between updates"
            )

    def _are_registered(self) -> bool:
        """Whether all tensors are bound to names."""
        return set(map(identity, self._bound.objects)).issuperset(map(identity, self._values))


def _walk_depends_on(modules: Sequence[torch.nn.Module]) -> object:
    return list(map(type, modules)) if walks_as_torch_does(modules[0]) else None


def _plain_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in named_tensors(module) if not why_not_plain(tensor)}


def refuse_unwritable(reasons: Mapping[str, str]) -> None:
    """Refuse to write tensors, by their names, for these reasons; nothing happens without one.

    Raises:
        UnwritableError: there is a tensor in ``reasons``; names a few.
    """
    if reasons:
        raise UnwritableError(_some([f"{name} cannot be updated: {reason}" for name, reason in reasons.items()], "; "))


def _some(told: Sequence[str], between: str = ", ") -> str:
    """A few of these, and how many more there are."""
    more = f" (and {len(told) - MOST} more)" if len(told) > MOST else ""
    return between.join(told[:MOST]) + more
