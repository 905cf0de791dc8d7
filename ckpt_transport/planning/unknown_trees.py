"""A name that no broadcast tree has is refused with the reason why there is no such tree."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_transport.planning.broadcast_trees import ON_GPUS
from ckpt_transport.planning.chain_broadcast import SUFFIX, transports_of
from ckpt_transport.transports.interface import Reach, Traits


def why_no_tree(name: str, sinks: int, traits: Mapping[str, Traits]) -> str:
    """Say why no tree of that name brings a version to so many sinks, by the ``traits`` of the transports there are."""
    outer, *inner = transports_of(name)
    if missing := [each for each in (outer, *inner) if each not in traits]:
        return f"there is no transport '{missing[0]}' here"
    is_chain = name.split("+")[0] == f"{outer}{SUFFIX}"
    if len(inner) > 1 or (inner and name.endswith(SUFFIX)):
        return "a relay has two transports, as 'gloo+shm', of which only the first may form a chain"
    if is_chain and sinks < 2:
        return "a chain needs two sinks, of which one passes on to the other"
    if is_chain and (traits[outer].maps_memory or traits[outer].reach in ON_GPUS):
        return f"what {outer} brings is mapped, so a sink has nothing of its own to pass on"
    return _why_no_relay(outer, inner[0], traits) if inner else "there is no such tree"


def _why_no_relay(outer: str, inner: str, traits: Mapping[str, Traits]) -> str:
    """A relay goes over ``outer`` to one rank of each host or GPU, and over ``inner`` from there."""
    if outer == inner:
        return f"a relay has two transports, and this one has {outer} twice"
    if traits[outer].reach is Reach.NETWORK and traits[inner].reach is Reach.NETWORK:
        return f"{inner} reaches other hosts itself, and a relay passes on by a transport that stays within one"
    if traits[outer].reach is Reach.NETWORK:
        return f"{inner} does not pass on within a host"
    why = f"the first transport of a relay goes to other hosts, and {outer} stays within one"
    return f"{why}; did you mean '{inner}+{outer}'?" if traits[inner].reach is Reach.NETWORK else why
