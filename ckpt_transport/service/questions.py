"""A sink or a holder may be asked these questions at any time, and these are its answers.

:data:`PARTICIPANT` and :data:`COORDINATOR` are all that the mailboxes of either side understand: this, and what is said
in an update.
"""

from __future__ import annotations

from ckpt_transport.control import Message
from ckpt_transport.execution import Arrival
from ckpt_transport.planning import Share, TensorSpec, WholeModule
from ckpt_transport.update.messages import TO_COORDINATORS, TO_MEMBERS
from ckpt_transport.update.settlement import Standing


class ServedVersion(Message, frozen=True):
    """Says what a sink or a holder serves.

    Attributes:
        label: what people call it.
        version: the version served, or the one that was served before the sink was tainted.
        tainted: why it must not serve; empty when it may.
        update: name of the version an update is bringing at the moment; empty when none is.
        engine: the name that ranks of one engine share; empty when it has one rank.
        stuck: which call does not return, so that it takes no update; empty when it takes them.
        in_doubt: why it holds its forward passes and cannot tell which version the others serve; empty when it can.
        warm_up: what was done ahead of the first update, or why that failed, in words; empty where nobody asked for it.
        previous: the version that it can go back to; empty for none.
        earlier: those to which further rollbacks lead, in their order.
        digest: of the bytes that a sink serves, where it was asked for: equal for sinks that serve the same. Empty
            while an update is under way, and of an engine that has none.
        release: of this library, there.
        since: when it began to serve that version, in seconds since the epoch, by its own clock.
        clock: the time there when it answered, in seconds since the epoch.
        state: how far it is in the update, in words; empty when none is under way.
        arrivals: what the update brings it, from whom, and how much of that has come.
    """

    label: str
    version: str
    tainted: str
    update: str
    engine: str = ""
    stuck: str = ""
    in_doubt: str = ""
    warm_up: str = ""
    previous: str = ""
    earlier: tuple[str, ...] = ()
    digest: str = ""
    release: str = ""
    since: float = 0.0
    clock: float = 0.0
    state: str = ""
    arrivals: tuple[Arrival, ...] = ()


class AskVersion(Message, frozen=True):
    """Which version do you serve? The answer is :class:`ServedVersion`.

    Attributes:
        digest: a digest of what is served is asked for, too.
    """

    digest: bool = False


class Resolve(Message, frozen=True):
    """A sink that is in doubt is told what to do, by somebody who knows. The answer is :class:`ServedVersion`.

    Attributes:
        forward: it is to serve the new version; else what it did before.
    """

    forward: bool


class AskExpected(Message, frozen=True):
    """Which tensors must a version bring? The answer is :class:`ExpectedTensors`."""


class ExpectedTensors(Message, frozen=True):
    """Says which tensors a sink's engine expects, as it was at its last update; None where only its loader knows."""

    label: str
    tensors: tuple[TensorSpec, ...] | None


class AskBase(Message, frozen=True):
    """Can you take the difference to the version that this update has brought you? The answer is :class:`BaseServed`.

    It is answered between updates.

    Attributes:
        base: the name of that version.
        update: the update.
    """

    base: str
    update: str


class BaseServed(Message, frozen=True):
    """Says whether a sink serves a base as it came, and can take a difference to it.

    Attributes:
        label: what people call the sink.
        reason: why not; empty when it can.
        share: which bytes of the version it serves; None for all.
        whole: modules of which it takes no single elements.
    """

    label: str
    reason: str
    share: Share | None = None
    whole: tuple[WholeModule, ...] = ()


class Here(Message, frozen=True):
    """A sink says where it can be invited, to somebody who asked its process to."""

    address: str
    served: ServedVersion


class Claimed(Message, frozen=True):
    """Says who drives the engine of a sink from outside.

    Attributes:
        number: of the claim that is answered.
        leader: who drives the engine, where that is another than the asker; empty when it is the asker.
        begun: what was begun in the engine and has not been ended, whoever has begun it.
    """

    number: int
    leader: str
    begun: tuple[str, ...]


class Claim(Message, frozen=True):
    """The sender drives the engine of this sink from outside, as long as its heartbeats come; see ``claims.py``.

    The answer is :class:`Claimed`.

    Attributes:
        number: of this claim, which the answer repeats.
        leader: what people call the sender.
        begun: what it begins there, as a pause, from now on.
        ended: what it has ended.
    """

    number: int
    leader: str
    begun: tuple[str, ...]
    ended: tuple[str, ...]


class Release(Message, frozen=True):
    """The sender drives the engine no more."""


class AskStanding(Message, frozen=True):
    """A sink has lost the coordinator of an update, and asks another how far it is. The answer is SayStanding.

    Attributes:
        staged: the word by which the sinks of that update know each other.
        rank: of the sink that is asked.
    """

    staged: str
    rank: int


class SayStanding(Message, frozen=True):
    """A sink says how far it is in the commit of an update.

    Attributes:
        staged, rank: as they were asked.
    """

    staged: str
    rank: int
    standing: Standing


PARTICIPANT: tuple[type[Message], ...] = (
    *TO_MEMBERS,
    AskVersion,
    Resolve,
    AskExpected,
    AskBase,
    AskStanding,
    SayStanding,
    Claim,
    Release,
)
"""What a sink, a holder, or a source rank that does not lead understands."""
COORDINATOR: tuple[type[Message], ...] = (*TO_COORDINATORS, ServedVersion, ExpectedTensors, BaseServed, Here)
"""What whoever leads an update or asks a question understands."""
