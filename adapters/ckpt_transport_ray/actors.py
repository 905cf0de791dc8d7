"""Finds the sinks of actors, and says which actors are gone.

An actor is asked once, by a task of its own, so it must not be busy then. What it answers is remembered until it is
gone, or is found elsewhere, as after a restart.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from ckpt_transport import JoinError
from ckpt_transport.spi import LocatedHandles

AGAIN_SECONDS = 0.2
"""How often an actor is asked again that is being started again."""
REASON_CHARACTERS = 300
"""So much is told of what Ray says about a death."""
ID_CHARACTERS = 12
"""So much of an id tells nodes apart."""


@dataclass(frozen=True, slots=True)
class _Whereabouts:
    """What an actor says of itself.

    Attributes:
        address: of its sink; empty when it has none.
        who: what people call it, and its node.
    """

    address: str
    who: str


_known: WeakKeyDictionary[Any, _Whereabouts] = WeakKeyDictionary()
"""By handle; a handle that is kept here would keep its actor alive."""


class LocatedActors(LocatedHandles):
    """Actors whose sinks' addresses are known.

    Args:
        handles: theirs.
        found: what each has said of itself, by handle.
    """

    def __init__(self, handles: Sequence[Any], found: Mapping[Any, _Whereabouts]) -> None:
        self.addresses = [found[handle].address for handle in handles]
        self._found = found
        self._asked: dict[Any, Any] = {}
        """Handles by the answer that each owes."""

    def gone(self, patience: float) -> Sequence[str]:
        for handle in self._found.keys() - set(self._asked.values()):
            self._asked[handle.__ray_call__.remote(_tell)] = handle
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=patience)
        clauses = []
        for answer in answered:
            handle = self._asked.pop(answer)
            if why := self._why_gone(handle, answer):
                _known.pop(handle, None)
                clauses.append(why)
        return clauses

    def _why_gone(self, handle: Any, answer: Any) -> str:
        """Why an actor is not where it was, by what it has answered; empty when it is."""
        before = self._found[handle]
        try:
            now: _Whereabouts = ray.get(answer)
        except RayError as error:
            return f"{before.who} is gone: {_in_short(error)}"
        return "" if now.address == before.address else f"{before.who} is gone: it was started again, as {now.who}"


def locate(handles: Sequence[Any], timeout: float) -> LocatedActors:
    """Ask actors for the addresses of their sinks, all at the same time: an attribute or a method ``address`` of each.

    One that is being started again is waited for.

    Raises:
        JoinError: an actor is gone, is busy for ``timeout`` seconds, or has no address; names it.
    """
    deadline = time.monotonic() + timeout
    found = {handle: _known[handle] for handle in handles if handle in _known}
    missing: dict[Any, str] = {}
    unasked = [handle for handle in handles if handle not in found]
    while unasked:
        asked = {handle.__ray_call__.remote(_tell): handle for handle in unasked}
        answered, late = ray.wait(list(asked), num_returns=len(asked), timeout=max(deadline - time.monotonic(), 0.0))
        missing = {asked[answer]: f"does not say its address within {timeout:g} s: is it busy?" for answer in late}
        unasked = []
        for answer in answered:
            try:
                found[asked[answer]] = ray.get(answer)
            except ActorUnavailableError as error:
                missing[asked[answer]] = _in_short(error)
                unasked.append(asked[answer])
            except RayActorError as error:
                missing[asked[answer]] = f"is gone: {_in_short(error)}"
        if time.monotonic() > deadline:
            break
        if unasked:
            time.sleep(AGAIN_SECONDS)
    clauses = [f"{handle} {why}" for handle, why in missing.items()]
    clauses += [f"{each.who} has no 'address', the text of its sink's" for each in found.values() if not each.address]
    if clauses:
        raise JoinError("; ".join(clauses))
    _known.update(found)
    return LocatedActors(handles, found)


def _tell(actor: object) -> _Whereabouts:
    """What an actor says of itself; runs in it."""
    address = getattr(actor, "address", "")
    if callable(address):
        address = address()
    context = ray.get_runtime_context()
    name = f" '{context.get_actor_name()}'" if context.get_actor_name() else ""
    node = f"{ray.util.get_node_ip_address()}, {context.get_node_id()[:ID_CHARACTERS]}"
    who = f"actor {type(actor).__name__}{name} ({context.get_actor_id()}) on node {node}"
    return _Whereabouts(address if isinstance(address, str) else "", who)


def _in_short(error: RayError) -> str:
    return re.sub(r"\s+", " ", str(error))[:REASON_CHARACTERS]
