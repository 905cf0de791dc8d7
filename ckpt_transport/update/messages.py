"""What coordinator and participants say to each other in an update.

::

    coordinator                         participant
    Invite      ─────────────────────►              (sinks and holders that listen; other sources come by themselves)
                ◄───────────────────── Challenge    a nonce, sent to the address that the invitation claims
    Invite      ─────────────────────►              with the nonce
                ◄───────────────────── Join         who I am, what I hold, what I can use
    Propose     ─────────────────────►              the plan
                ◄───────────────────── Agree        its digest
    Open        ─────────────────────►              attach to the routes
                ◄───────────────────── Opened       descriptors of what I lend
    Connect     ─────────────────────►              everybody's descriptors
                ◄───────────────────── Connected
    Hold        ─────────────────────►              sinks only: start no further forward pass
                ◄───────────────────── Held         how many I have started
    Advance     ─────────────────────►              finish this many, then stand still
                ◄───────────────────── Still
    Run         ─────────────────────►
                ◄───────────────────── Ran          the timeline
    Commit      ─────────────────────►              serve the new version
                ◄───────────────────── Committed

At any point a participant may say Failed, and the coordinator Abort, which is answered by Aborted. Everything that the
coordinator says to a participant after Join carries the nonce of that participant; what lacks it, or comes in another
order, is refused. :mod:`ckpt_transport.update.follower` has the table of what may follow what.

An update by P2P goes on when members leave. Whoever cannot go on because of others says Stopped; the coordinator says
Halt to all, hears from each what it has (Stopped again), and proposes a plan for what is missing to those that remain.
"""

from __future__ import annotations

import msgspec

from ckpt_transport.control import Message
from ckpt_transport.execution import Event
from ckpt_transport.planning import Manifest, PlacedTensor, Role, Share


class Told(Message, frozen=True, kw_only=True):
    """Base of what the coordinator says to a participant.

    Attributes:
        nonce: the participant's own, which it has told nobody but this coordinator.
    """

    nonce: str = ""


class Order(Told, frozen=True):
    """Base of the steps of one update."""

    update: str


class Invite(Order, frozen=True):
    """Take part in an update. Without the right nonce it is answered by a :class:`Challenge`.

    Attributes:
        address: the sink's or holder's, as the coordinator was given it.
        transports: the names worth probing.
    """

    version: str
    address: str
    transports: tuple[str, ...]


class Challenge(Message, frozen=True):
    """Whoever can read this is at the address that the invitation claims to come from: invite again, with this nonce.

    Attributes:
        address: of the invitation.
    """

    update: str
    address: str
    nonce: str


class Join(Message, frozen=True, kw_only=True):
    """A participant introduces itself.

    Attributes:
        invited: the address that a sink or a holder was invited at.
        uid: unlike any other process's, so that a restarted one is not taken for the old one.
        nonce: what the coordinator's messages to it carry.
        manifest: what a source holds; None from a sink.
        unavailable: the other transports, each with the reason.
        bandwidths: what those of ``transports`` expect here; see :meth:`Transport.expected_bandwidth`.
        routes: names of the routes it has kept open.
        devices: UUIDs of the GPUs it can use.
        plan: the shape of the plan it knows; empty for none.
        link: bytes per second of its link to other hosts; 0 when nobody said.
        share: what a sink needs of versions with certain tensors; None for everything.
        ties: sets of names that share memory in a sink's engine.
    """

    update: str
    role: Role
    invited: str = ""
    uid: str
    nonce: str = ""
    label: str
    host: str
    budget: int
    transports: tuple[str, ...]
    unavailable: dict[str, str]
    routes: tuple[str, ...]
    rank: int = -1
    manifest: Manifest | None = None
    engine: str = ""
    whole_tensors: bool = False
    keeps_tensors: bool = False
    devices: tuple[str, ...] = ()
    plan: str = ""
    link: int = 0
    share: Share | None = None
    bandwidths: dict[str, float] = msgspec.field(default_factory=dict)
    ties: tuple[tuple[str, ...], ...] = ()


class Absent(Message, frozen=True):
    """A source rank takes no part in updates to ``version`` (empty: in any); with an empty reason it does again."""

    rank: int
    version: str
    reason: str


class Busy(Message, frozen=True):
    """A sink cannot join yet, because another update is still going on; invite it again."""

    update: str
    address: str
    reason: str


class Propose(Order, frozen=True):
    """The plan, which rank of it the receiver is, where everybody is, and the names of the plan's routes.

    Attributes:
        plan: encoded; empty when the receiver knows one of that shape.
        shape: of the plan.
        version: the plan's.
        resumable: members may leave, and what is missing then is planned again.
        round: which plan of the update it is, from 0.
        tied: tensors of which a source is to say digests, with numbers of its own extents.
        digests: the name of the channel on which owners say the digests of buckets; empty where nobody compares.
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


class Agree(Message, frozen=True):
    """Attributes:
    digest: of the plan.
    tied: of the tensors that were asked for.
    """

    update: str
    rank: int
    digest: str
    tied: tuple[bytes, ...] = ()


class Open(Order, frozen=True):
    """Attach to the routes of the plan, and register memory."""


class Opened(Message, frozen=True):
    """Descriptors of what this rank lends, by route."""

    update: str
    rank: int
    descriptors: dict[int, list[bytes]]


class Connect(Order, frozen=True):
    """Descriptors of what each sender lends, by route, then by rank."""

    descriptors: dict[int, dict[int, list[bytes]]]


class Connected(Message, frozen=True):
    update: str
    rank: int


class Hold(Order, frozen=True):
    """Start no further forward pass."""


class Held(Message, frozen=True):
    update: str
    rank: int
    forwards: int


class Advance(Order, frozen=True):
    """Finish so many forward passes, then stand still."""

    forwards: int


class Still(Message, frozen=True):
    update: str
    rank: int


class Run(Order, frozen=True):
    """Do your part of the plan."""


class Ran(Message, frozen=True):
    """``told``: how a sink has applied the version, in words; empty when there is nothing to say."""

    update: str
    rank: int
    events: list[Event]
    told: str = ""


class Commit(Order, frozen=True):
    """Serve the new version."""


class Committed(Message, frozen=True):
    """``paused``: seconds for which forward passes were held."""

    update: str
    rank: int
    paused: float


class Halt(Order, frozen=True):
    """A member has left, or a route broke: end this round, keep what has arrived, and wait for another plan."""

    round: int
    reason: str


class Stopped(Message, frozen=True):
    """This member has ended the round.

    Attributes:
        reason: why it did so by itself; empty when it was told to.
        has: what its engine was given so far: (tensor, first byte, number of bytes) each.
    """

    update: str
    rank: int
    round: int
    reason: str
    has: list[tuple[str, int, int]]


class Failed(Message, frozen=True):
    """``error``: the name of a class in :mod:`ckpt_transport.errors`, or of any other exception."""

    update: str
    rank: int
    error: str
    reason: str


class Abort(Order, frozen=True):
    """The update has failed: go back."""

    reason: str


class Aborted(Message, frozen=True):
    """This member has given the update up, because it was told to or by itself.

    Attributes:
        tainted: the sink holds a mix of two versions and must not serve.
        reason: why it gave up.
    """

    update: str
    rank: int
    tainted: bool
    reason: str = ""


class Goodbye(Told, frozen=True):
    """The coordinator ends; routes need not be kept."""


class AskVersion(Message, frozen=True):
    """Which version do you serve?"""


class ServedVersion(Message, frozen=True):
    """Attributes:
    version: the version served, or the one that was served before the sink was tainted.
    tainted: why it must not serve; empty when it may.
    update: name of the version an update is bringing at the moment; empty when none is.
    engine: the name that ranks of one engine share; empty when it has one rank.
    stuck: which call does not return, so that it takes no update; empty when it takes them.
    """

    label: str
    version: str
    tainted: str
    update: str
    engine: str = ""
    stuck: str = ""


class Here(Message, frozen=True):
    """A sink says where it can be invited, to somebody who asked its process to."""

    address: str
    served: ServedVersion


class Claim(Message, frozen=True):
    """The sender drives the engine of this sink from outside, as long as its heartbeats come; see ``claims.py``.

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


class Claimed(Message, frozen=True):
    """Attributes:
    number: of the claim that is answered.
    leader: who drives the engine, where that is another than the asker; empty when it is the asker.
    begun: what was begun in the engine and has not been ended, whoever has begun it.
    """

    number: int
    leader: str
    begun: tuple[str, ...]


class Release(Message, frozen=True):
    """The sender drives the engine no more."""


PARTICIPANT = (
    Invite,
    Propose,
    Open,
    Connect,
    Hold,
    Advance,
    Run,
    Halt,
    Commit,
    Abort,
    Goodbye,
    AskVersion,
    Claim,
    Release,
)
"""What a participant understands."""
COORDINATOR = (
    Challenge,
    Join,
    Absent,
    Busy,
    Agree,
    Opened,
    Connected,
    Held,
    Still,
    Ran,
    Stopped,
    Committed,
    Failed,
    Aborted,
    ServedVersion,
    Here,
)
"""What a coordinator understands."""
