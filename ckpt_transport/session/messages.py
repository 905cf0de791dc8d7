"""What coordinator and participants say to each other in an update.

::

    coordinator                         participant
    Invite      ─────────────────────►              (sinks that listen; sources and others come by themselves)
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

At any point a participant may say Failed, and the coordinator Abort, which is answered by Aborted.
"""

from __future__ import annotations

from ckpt_transport.control import Message
from ckpt_transport.execution import Event
from ckpt_transport.planning import Manifest, Role


class Invite(Message, frozen=True):
    """Take part in an update.

    Attributes:
        address: the sink's, as the coordinator was given it.
        transports: the names worth probing.
    """

    update: str
    version: str
    address: str
    transports: tuple[str, ...]


class Join(Message, frozen=True, kw_only=True):
    """A participant introduces itself.

    Attributes:
        invited: the address that a sink was invited at.
        uid: unlike any other process's, so that a restarted one is not taken for the old one.
        manifest: what a source holds; None from a sink.
        unavailable: the other transports, each with the reason.
        routes: names of the routes it has kept open.
        devices: UUIDs of the GPUs it can use.
        plan: the shape of the plan it knows; empty for none.
    """

    update: str
    role: Role
    invited: str = ""
    uid: str
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


class Busy(Message, frozen=True):
    """A sink cannot join yet, because another update is still going on; invite it again."""

    update: str
    address: str
    reason: str


class Propose(Message, frozen=True):
    """The plan, which rank of it the receiver is, where everybody is, and the names of the plan's routes.

    Attributes:
        plan: encoded; empty when the receiver knows one of that shape.
        shape: of the plan.
        version: the plan's.
    """

    update: str
    plan: bytes
    shape: str
    version: str
    rank: int
    addresses: tuple[str, ...]
    routes: tuple[str, ...]


class Agree(Message, frozen=True):
    update: str
    rank: int
    digest: str


class Open(Message, frozen=True):
    update: str


class Opened(Message, frozen=True):
    """Descriptors of what this rank lends, by route."""

    update: str
    rank: int
    descriptors: dict[int, list[bytes]]


class Connect(Message, frozen=True):
    """Descriptors of what each sender lends, by route, then by rank."""

    update: str
    descriptors: dict[int, dict[int, list[bytes]]]


class Connected(Message, frozen=True):
    update: str
    rank: int


class Hold(Message, frozen=True):
    update: str


class Held(Message, frozen=True):
    update: str
    rank: int
    forwards: int


class Advance(Message, frozen=True):
    update: str
    forwards: int


class Still(Message, frozen=True):
    update: str
    rank: int


class Run(Message, frozen=True):
    update: str


class Ran(Message, frozen=True):
    """``told``: how a sink has applied the version, in words; empty when there is nothing to say."""

    update: str
    rank: int
    events: list[Event]
    told: str = ""


class Commit(Message, frozen=True):
    update: str


class Committed(Message, frozen=True):
    """``paused``: seconds for which forward passes were held."""

    update: str
    rank: int
    paused: float


class Failed(Message, frozen=True):
    """``error``: the name of a class in :mod:`ckpt_transport.errors`, or of any other exception."""

    update: str
    rank: int
    error: str
    reason: str


class Abort(Message, frozen=True):
    update: str
    reason: str


class Aborted(Message, frozen=True):
    """``tainted``: the sink holds a mix of two versions and must not serve."""

    update: str
    rank: int
    tainted: bool


class Goodbye(Message, frozen=True):
    """The coordinator ends; routes need not be kept."""


class AskVersion(Message, frozen=True):
    """Which version do you serve?"""


class ServedVersion(Message, frozen=True):
    """Attributes:
    version: the version served, or the one that was served before the sink was tainted.
    tainted: why it must not serve; empty when it may.
    update: name of the version an update is bringing at the moment; empty when none is.
    """

    label: str
    version: str
    tainted: str
    update: str


class Here(Message, frozen=True):
    """A sink says where it can be invited, to somebody who asked its process to."""

    address: str
    served: ServedVersion


PARTICIPANT = (Invite, Propose, Open, Connect, Hold, Advance, Run, Commit, Abort, Goodbye, AskVersion)
"""What a participant understands."""
COORDINATOR = (Join, Busy, Agree, Opened, Connected, Held, Still, Ran, Committed, Failed, Aborted, ServedVersion, Here)
"""What a coordinator understands."""
