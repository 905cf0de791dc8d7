"""The messages of an update.

Orders go from the coordinator to members, and each has an answer. :mod:`ckpt_transport.update.protocol` says what may
follow what.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

from ckpt_transport.control import Message
from ckpt_transport.planning import NO_LIMIT, Manifest, PlacedTensor, Role, ServedShares, Share, StagingPlace
from ckpt_transport.rates import HostRates


class ToCoordinator(Message, frozen=True):
    """Every message that a coordinator understands derives from this."""


class FromCoordinator(Message, frozen=True, kw_only=True):
    """Everything that only the coordinator may say to a member derives from this.

    Attributes:
        nonce: the member's own, which it has told nobody but this coordinator.
        trace: the ``traceparent`` of the update; empty where it is not traced.
    """

    nonce: str = ""
    trace: str = ""


Answer = TypeVar("Answer", bound=ToCoordinator)


class Order(FromCoordinator, Generic[Answer], frozen=True):
    """Everything that the coordinator asks for in an update derives from this; the type parameter is the answer.

    Attributes:
        update: the name of the update.
    """

    update: str


AnyOrder = Order[Any]


class Reply(ToCoordinator, frozen=True):
    """Everything that a member says in an update once it has a rank derives from this.

    Attributes:
        update: the name of the update.
        rank: of the member in the plan; -1 before it has heard of one.
    """

    update: str
    rank: int


class Join(ToCoordinator, frozen=True, kw_only=True):
    """A member introduces itself; made and read by :mod:`ckpt_transport.update.introduction`.

    Attributes:
        update: the name of the update; empty from a source rank, which does not know it yet.
        invited: the address at which a sink or a holder was invited.
        uid: differs from that of any other process, so that a restarted process is not taken for the old one.
        nonce: what the coordinator's messages to this member carry.
        label: what people call the member.
        host: where the member runs; see :func:`~ckpt_transport.update.host.host_name`.
        budget: bytes of memory that the update may take there.
        shared_budget: how many of these may be shared memory.
        transports: names of those that can run there.
        unavailable: the other transports that were asked for, each with the reason.
        bandwidths: bytes per second that each of ``transports`` expects there.
        rates: of the links of the host, where they were measured.
        routes: names of the routes that the member has kept open.
        rank: of a source among the sources; -1 for who is invited.
        manifest: what a source holds; None from a sink.
        engine: the name that ranks of one engine share; empty when the engine has one rank.
        whole_tensors, keeps_tensors: as :class:`~ckpt_transport.engine.Engine` says.
        devices: UUIDs of the GPUs that the member can use.
        reads: UUIDs of the other GPUs whose memory a sink's GPU can read.
        plan: the shape of the plan that the member knows; empty for none.
        link: bytes per second of the member's link to other hosts; 0 when nobody said.
        share: what a sink needs of versions with certain tensors; None for everything.
        ties: sets of names that share memory in a sink's engine.
        unstaged: why a sink cannot stage a version; empty when it can.
        staging: where a sink stages a version; None where it does not, or does not say so.
        previous: the version that a sink can go back to; empty for none.
        holds: the update that has brought what a source can compare the version with; empty for none.
        number: of the :class:`Differ` that a source has followed; 0 before any.
    """

    update: str = ""
    role: Role
    invited: str = ""
    uid: str
    nonce: str = ""
    label: str
    host: str
    budget: int
    shared_budget: int = NO_LIMIT
    transports: tuple[str, ...]
    unavailable: dict[str, str]
    routes: tuple[str, ...] = ()
    rank: int = -1
    manifest: Manifest | None = None
    engine: str = ""
    whole_tensors: bool = False
    keeps_tensors: bool = False
    devices: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    plan: str = ""
    link: int = 0
    share: Share | None = None
    bandwidths: dict[str, float] = msgspec.field(default_factory=dict)
    rates: HostRates | None = None
    ties: tuple[tuple[str, ...], ...] = ()
    unstaged: str = ""
    staging: StagingPlace | None = None
    previous: str = ""
    holds: str = ""
    number: int = 0


class Invite(Order[Join], frozen=True):
    """Take part in an update.

    Attributes:
        version: the name of the version that the update brings.
        address: the sink's or holder's, as the coordinator was given it.
        transports: the names of the transports that are worth probing.
        staged: the version is to be staged, if that can be done.
        base: the version that a sink must serve, because the other one brings only what has changed since; empty when
            it brings everything.
        base_update: the update that has brought the base there; empty when the coordinator does not know it.
        delta: what comes are carriers of the difference to the base, and not some of the tensors.
        deltas_follow: the version may be the base of such a difference, so that a sink notes what it serves then.
    """

    version: str
    address: str
    transports: tuple[str, ...]
    staged: bool = False
    base: str = ""
    base_update: str = ""
    delta: bool = False
    deltas_follow: bool = False


class Challenge(ToCoordinator, frozen=True):
    """Whoever reads this is at the address that an invitation claims to come from, and invites again with this nonce.

    Attributes:
        update, address: of the invitation.
    """

    update: str
    address: str
    nonce: str


class Busy(ToCoordinator, frozen=True):
    """A sink cannot join yet, because another update is still going on; invite it again."""

    update: str
    address: str
    reason: str


class Absent(ToCoordinator, frozen=True):
    """A source rank takes no part in updates to ``version`` (empty: in any); with an empty reason it does again."""

    rank: int
    version: str
    reason: str


class Differ(FromCoordinator, frozen=True, kw_only=True):
    """A source rank joins anew, with what differs from a version that it has brought before, or with all it has.

    Attributes:
        base_update: the update that has brought that version; empty for all.
        number: of those that are said in an update, from 1.
        served: what sinks serve of the version.
    """

    base_update: str
    number: int
    served: ServedShares


class Agree(Reply, frozen=True):
    """The member can carry out the plan.

    Attributes:
        digest: of the plan.
        tied: digests of the tensors that the coordinator asked for.
        descriptors: as those of Opened, where the member has kept all its routes, so that nobody had to be waited for:
            it is not told to open them. None where it has not.
    """

    digest: str
    tied: tuple[bytes, ...] = ()
    descriptors: dict[int, list[bytes]] | None = None


class Propose(Order[Agree], frozen=True):
    """This is the plan, the receiver's rank in it, where everybody is, and what the plan's routes are called.

    Attributes:
        plan: the encoded plan; empty when the receiver knows one of that shape.
        shape: of the plan.
        version: the plan's.
        rank: the receiver's.
        addresses: of all ranks.
        routes: names of the plan's routes.
        resumable: members may leave, and what is missing then is planned again.
        round: which plan of the update this is, from 0.
        tied: tensors of which a source is to say digests, with numbers of its own extents.
        digests: the name of the channel on which owners say the digests of buckets; empty where nobody compares.
        staged: a random word by which sinks that stage the version know each other when they settle; empty where it is
            written in place.
    """

    plan: bytes
    shape: str
    version: str
    rank: int
    addresses: tuple[str, ...]
    routes: tuple[str, ...]
    resumable: bool = False
    round: int = 0
    tied: tuple[PlacedTensor, ...] = ()
    digests: str = ""
    staged: str = ""


class Restorable(Reply, frozen=True):
    """The sink has the version before, and can serve it again."""


class Restore(Order[Restorable], frozen=True):
    """Get ready to serve the version before. Only sinks hear this.

    Attributes:
        rank: the receiver's.
        sinks: the addresses of all sinks, by rank.
        staged: as that of Propose.
    """

    rank: int
    sinks: dict[int, str]
    staged: str


class Opened(Reply, frozen=True):
    """The member has attached to its routes; these are the descriptors of what it lends, by route."""

    descriptors: dict[int, list[bytes]]


class Open(Order[Opened], frozen=True):
    """Attach to the routes of the plan, and register memory."""


class Connected(Reply, frozen=True):
    """The member has learned what the senders of its routes lend."""


class Connect(Order[Connected], frozen=True):
    """Learn what each sender lends: descriptors by route, then by rank."""

    descriptors: dict[int, dict[int, list[bytes]]]


class Still(Reply, frozen=True):
    """No forward pass runs."""


class Stand(Order[Still], frozen=True):
    """Start no further forward pass, and stand still. Only sinks hear this that are all there is of their engine."""


class Held(Reply, frozen=True):
    """The sink starts no further forward pass; it has started ``forwards``."""

    forwards: int


class Hold(Order[Held], frozen=True):
    """Start no further forward pass. Only sinks hear this."""


class Advance(Order[Still], frozen=True):
    """Finish so many forward passes, counted from the engine's start; then stand still."""

    forwards: int


class Ran(Reply, frozen=True):
    """The member has done its part of the plan.

    Attributes:
        events: its timeline; see :class:`~ckpt_transport.execution.GatheredTimeline`.
        apply_summary: how a sink has applied the version, in words; empty when there is nothing to say.
    """

    events: bytes
    apply_summary: str = ""


class Run(Order[Ran], frozen=True):
    """Do your part of the plan."""


class Kept(Reply, frozen=True):
    """The member waits for the moment of the commit."""


class Keep(Order[Kept], frozen=True):
    """All have staged the version, and it waits until whoever leads the update has it committed, or dropped.

    Attributes:
        seconds: after which the member gives the update up.
    """

    seconds: float


class Applied(Reply, frozen=True):
    """The sink has exchanged what was staged and what it served, and can take that back."""


class Apply(Order[Applied], frozen=True):
    """Exchange what is staged and what is served. Only sinks hear this."""


class Decided(Reply, frozen=True):
    """The sink knows that all have applied the version."""


class Decide(Order[Decided], frozen=True):
    """All sinks have applied the version, so nobody goes back any more. Only sinks hear this."""


class Committed(Reply, frozen=True):
    """The member serves the new version.

    Attributes:
        paused: for how many seconds forward passes were held.
        welcome: the nonce with which this coordinator's next invitation counts at once; empty from who is not invited.
    """

    paused: float
    welcome: str = ""


class Commit(Order[Committed], frozen=True):
    """Serve the new version."""


class Stopped(Reply, frozen=True):
    """The member has ended the round.

    Attributes:
        round: which one.
        reason: why it did so by itself; empty when it was told to.
        has: what its engine was given so far: (tensor, first byte, number of bytes) each.
    """

    round: int
    reason: str
    has: list[tuple[str, int, int]]


class Halt(Order[Stopped], frozen=True):
    """A member has left, or a route broke: end this round, keep what has arrived, and wait for another plan."""

    round: int
    reason: str


class Failed(Reply, frozen=True):
    """Something went wrong at the member.

    Attributes:
        error: the name of a class in :mod:`ckpt_transport.errors`, or of any other exception.
        reason: its text.
    """

    error: str
    reason: str


class Aborted(Reply, frozen=True):
    """The member has given the update up, because it was told to or by itself.

    Attributes:
        tainted: the sink holds a mix of two versions and must not serve.
        reason: why the member gave up.
    """

    tainted: bool
    reason: str = ""


class Abort(Order[Aborted], frozen=True):
    """The update has failed: go back.

    Attributes:
        reason: why.
        again: a difference could not be taken, and everything is brought at once: source ranks join anew.
    """

    reason: str
    again: bool = False


class Goodbye(FromCoordinator, frozen=True):
    """The coordinator ends; routes need not be kept."""


def messages_of(base: type[Message]) -> Iterator[type[Message]]:
    """The messages that are sent: those of which none is derived."""
    for kind in base.__subclasses__():
        if kind.__subclasses__():
            yield from messages_of(kind)
        else:
            yield kind


TO_MEMBERS = tuple(messages_of(FromCoordinator))
"""What members understand in an update."""
TO_COORDINATORS = tuple(messages_of(ToCoordinator))
"""What a coordinator understands in an update."""
