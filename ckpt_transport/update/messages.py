"""The messages of an update.

Orders go from the coordinator to members, and each has an answer. :mod:`ckpt_transport.update.protocol` says what may
follow what.
"""

from __future__ import annotations

from ckpt_transport.planning import PlacedTensor
from ckpt_transport.update.joining_messages import Absent as Absent
from ckpt_transport.update.joining_messages import Busy as Busy
from ckpt_transport.update.joining_messages import Challenge as Challenge
from ckpt_transport.update.joining_messages import Differ as Differ
from ckpt_transport.update.joining_messages import Invite as Invite
from ckpt_transport.update.joining_messages import Join as Join
from ckpt_transport.update.message_kinds import Answer as Answer
from ckpt_transport.update.message_kinds import AnyOrder as AnyOrder
from ckpt_transport.update.message_kinds import FromCoordinator as FromCoordinator
from ckpt_transport.update.message_kinds import Order as Order
from ckpt_transport.update.message_kinds import Reply as Reply
from ckpt_transport.update.message_kinds import ToCoordinator as ToCoordinator
from ckpt_transport.update.message_kinds import messages_of


class Agree(Reply, frozen=True):
    """The member can carry out the plan.

    Attributes:
        digest: of the plan.
        tied: digests of the tensors that the coordinator asked for.
        descriptors: as those of Opened, where the member has kept all its routes, so that nobody had to be waited for:
            it is not told to open them. None where it has not, and where it lends what the proposal has named.
        connected: it has opened its routes, and knows what is lent.
    """

    digest: str
    tied: tuple[bytes, ...] = ()
    descriptors: dict[int, list[bytes]] | None = None
    connected: bool = False


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
        lent: as the descriptors of Connect, where rank 0 alone lends anything, and has kept its routes; else None.
        lent_name: as the name of Connect, for ``lent``; alone, for what all have lent in the update before.
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
    lent: dict[int, dict[int, list[bytes]]] | None = None
    lent_name: str = ""


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
    """Learn what each sender lends.

    Attributes:
        descriptors: by route, then by rank.
        name: by which the next proposal may mean all of them.
    """

    descriptors: dict[int, dict[int, list[bytes]]]
    name: str = ""


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
        stopping: for how many seconds a sink that stands still has waited for its forward passes to end.
    """

    events: bytes
    apply_summary: str = ""
    stopping: float = 0.0


class Run(Order[Ran], frozen=True):
    """Do your part of the plan."""


class StandAndRun(Order[Ran], frozen=True):
    """Stand still, and do your part of the plan then. Only the sink of an update hears this that has no other one."""


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


class Dismissed(Reply, frozen=True):
    """The member has left the update, and serves what it has served before.

    Attributes:
        welcome: as that of Committed.
    """

    welcome: str = ""


class Dismiss(Order[Dismissed], frozen=True):
    """The update has got all ready for the next one, and changed nothing: leave it, and keep what was found out."""


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
        nonce: that of its Join, from a source rank that does not know the name of the update yet.
    """

    tainted: bool
    reason: str = ""
    nonce: str = ""


class Abort(Order[Aborted], frozen=True):
    """The update has failed: go back.

    Attributes:
        reason: why.
        again: a difference could not be taken, and everything is brought at once: source ranks join anew.
    """

    reason: str
    again: bool = False


class Summons(FromCoordinator, frozen=True):
    """The coordinator leads an update now: a source rank that waits for that comes, or looks where it was told so.

    Attributes:
        version: that it brings; empty where there is none any more.
        address: of the coordinator.
        token: of what is said of that update where ranks look for it.
    """

    version: str = ""
    address: str = ""
    token: str = ""


class Goodbye(FromCoordinator, frozen=True):
    """The coordinator ends; routes need not be kept."""


TO_MEMBERS = tuple(messages_of(FromCoordinator))
"""What members understand in an update."""
TO_COORDINATORS = tuple(messages_of(ToCoordinator))
"""What a coordinator understands in an update."""
