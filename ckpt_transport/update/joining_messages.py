"""The messages by which members come to an update."""

from __future__ import annotations

import msgspec

from ckpt_transport.planning import NO_LIMIT, Manifest, Role, ServedShares, Share, StagingPlace
from ckpt_transport.rates import HostRates
from ckpt_transport.update.message_kinds import FromCoordinator, Order, ToCoordinator


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
        manifest: what a source holds, without its tensors where ``held`` says them; None from a sink.
        held: what a source rank above 0 holds, whatever the version; see
            :mod:`~ckpt_transport.update.held_manifests`. Empty from others.
        asked: what the caller of a source rank has asked for besides the version, by option, in words.
        engine: the name that ranks of one engine share; empty when the engine has one rank.
        whole_tensors, keeps_tensors: as :class:`~ckpt_transport.engine.Engine` says.
        devices: UUIDs of the GPUs that the member can use.
        reads: UUIDs of the other GPUs whose memory a sink's GPU can read.
        plan: the shape of the plan that the member knows; empty for none.
        link: bytes per second of the member's link to other hosts; 0 when nobody said.
        share: what a sink needs of versions with certain tensors; None for everything, and where ``needs`` says it.
        needs: the same, encoded; see :mod:`~ckpt_transport.update.held_shares`.
        ties: sets of names that share memory in a sink's engine.
        unstaged: why a sink cannot stage a version; empty when it can.
        staging: where a sink stages a version; None where it does not, or does not say so.
        previous: the version that a sink can go back to; empty for none.
        holds: the update that has brought what a source can compare the version with; empty for none.
        number: of the :class:`Differ` that a source has followed; 0 before any.
        processes: equal in members that may read each other's private memory.
        unread: why a sink does not read tensors in private memory of a source into place; empty where it does.
        files: equal in members that can hand each other open files.
        unmapped: why a sink does not map memory of a GPU that it is handed as open files; empty where it does.
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
    held: bytes = b""
    asked: dict[str, str] = msgspec.field(default_factory=dict)
    engine: str = ""
    whole_tensors: bool = False
    keeps_tensors: bool = False
    devices: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    plan: str = ""
    link: int = 0
    share: Share | None = None
    needs: bytes = b""
    bandwidths: dict[str, float] = msgspec.field(default_factory=dict)
    rates: HostRates | None = None
    ties: tuple[tuple[str, ...], ...] = ()
    unstaged: str = ""
    staging: StagingPlace | None = None
    previous: str = ""
    holds: str = ""
    number: int = 0
    processes: str = ""
    unread: str = ""
    files: str = ""
    unmapped: str = ""


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
