"""The protocol of an update: in which order coordinator and members say its messages.

Each row of :data:`EXCHANGES` is an order of the coordinator, the answer to it, and the states of a member in which the
order is followed. A member is a sink, a holder, or a source rank other than the coordinator's. Sinks and holders listen
and are invited; other source ranks come by themselves, and begin with Join.

An invitation without the right nonce is answered by Challenge, which goes to the address that the invitation claims to
come from. It counts when it comes again with that nonce. Committed carries the nonce for the next invitation from the
same coordinator, as long as no other update ends in between. Everything that the coordinator says to a member after
Join carries the member's nonce. A member refuses what lacks the nonce and what comes in another order.

A member that has kept all routes of a plan opens them when it agrees, and Open is for the others. Where rank 0 alone
lends memory and has kept its routes too, Propose says what it lends, such a member connects when it agrees, and Connect
is for the others. Where all were in the last update, Propose names what they have lent in it. Who still lends that
connects when it agrees; where somebody does not, Connect is for all. A sink that is all there is of its engine hears
Stand in place of Hold and Advance, and the only sink of an update that is not staged StandAndRun in place of Stand and
Run: where there are others, all have to stand still before one of them is given a byte.

A member may say Failed at any time. The coordinator then says Abort to all members, and hears Aborted from each.

A staged update runs while forward passes run: what it brings goes into a staging area on each sink. Hold and Advance
come after Run then, and Apply, which exchanges what is staged and what is served. The coordinator says Decide when all
have applied, and Commit when all who live have heard that. A sink that loses the coordinator between Apply and Commit
asks the others; see :mod:`ckpt_transport.update.settlement`.

Where the caller chooses the moment of the commit, Keep follows Run: members wait for longer then.

A warm-up is an update that ends before anything is held. Dismiss comes after Run where the version is staged, and else
when all are connected. Members keep routes, plan and staging area as after Commit, and serve what they did. A staged
version that is dropped while it waits ends so, too, where there is one source rank.

A rollback is a staged update that brings nothing, because the version before is still staged: Restore comes in place of
Propose, and Hold follows it.

An update by P2P goes on when members leave. A member that cannot go on because of others says Stopped. The coordinator
says Halt to all members, hears from each what it has (Stopped again), and proposes to those that remain a plan for what
is missing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Generic

from ckpt_transport.update import messages as m


class State(enum.StrEnum):
    """Says how far a member is in an update. The value is what the member says of itself."""

    INVITED = "waits for a plan"
    AGREED = "has agreed to a plan"
    OPEN = "has opened its routes"
    CONNECTED = "is connected"
    HELD = "holds its forward passes"
    STILL = "stands still"
    RAN = "has done its part"
    APPLIED = "has applied the version"
    DECIDED = "knows that all have applied the version"
    STOPPED = "has ended a round"
    COMMITTED = "has committed"
    DISMISSED = "was dismissed"


ANY = tuple(State)


@dataclass(frozen=True, slots=True)
class Exchange(Generic[m.Answer]):
    """An exchange is a row of the protocol: an order of the coordinator and its answer.

    Attributes:
        order, answer: their types.
        during: the states of a member in which it follows the order.
        then: the member's state when it has done so; None when it is not in the update any more.
    """

    order: type[m.Order[m.Answer]]
    answer: type[m.Answer]
    during: tuple[State, ...]
    then: State | None


EXCHANGES = (
    Exchange(m.Invite, m.Join, (), State.INVITED),
    Exchange(m.Propose, m.Agree, (State.INVITED, State.STOPPED), State.AGREED),
    Exchange(m.Restore, m.Restorable, (State.INVITED,), State.RAN),
    Exchange(m.Open, m.Opened, (State.AGREED,), State.OPEN),
    Exchange(m.Connect, m.Connected, (State.OPEN, State.CONNECTED), State.CONNECTED),
    Exchange(m.Stand, m.Still, (State.CONNECTED, State.RAN), State.STILL),
    Exchange(m.Hold, m.Held, (State.CONNECTED, State.RAN), State.HELD),
    Exchange(m.Advance, m.Still, (State.HELD,), State.STILL),
    Exchange(m.Run, m.Ran, (State.CONNECTED, State.STILL), State.RAN),
    Exchange(m.StandAndRun, m.Ran, (State.CONNECTED,), State.RAN),
    Exchange(m.Keep, m.Kept, (State.RAN,), State.RAN),
    Exchange(m.Apply, m.Applied, (State.STILL,), State.APPLIED),
    Exchange(m.Decide, m.Decided, (State.APPLIED,), State.DECIDED),
    Exchange(m.Commit, m.Committed, (State.RAN, State.STOPPED, State.DECIDED), State.COMMITTED),
    Exchange(m.Dismiss, m.Dismissed, (State.CONNECTED, State.RAN), State.DISMISSED),
    Exchange(m.Halt, m.Stopped, ANY, State.STOPPED),
    Exchange(m.Abort, m.Aborted, ANY, None),
)
"""The protocol of an update, in the order of its steps."""

_EXCHANGE_OF: dict[type[m.AnyOrder], Exchange[Any]] = {exchange.order: exchange for exchange in EXCHANGES}


def exchange_of(order: m.Order[m.Answer]) -> Exchange[m.Answer]:
    """The row of :data:`EXCHANGES` that an order belongs to."""
    return _EXCHANGE_OF[type(order)]


def parts_of(order: m.AnyOrder) -> tuple[m.AnyOrder, ...]:
    """The orders that a member follows one after the other where it hears one; it answers the last of them."""
    if isinstance(order, m.StandAndRun):
        said = {"update": order.update, "nonce": order.nonce, "trace": order.trace}
        return m.Stand(**said), m.Run(**said)
    return (order,)


def moves_bytes(order: m.AnyOrder) -> bool:
    """Whether a member that follows it runs its part of the plan."""
    return isinstance(order, m.Run)
