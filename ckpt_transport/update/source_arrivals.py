"""The other source ranks come to an update by themselves. Rank 0 lets in those whose callers ask for the same."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ckpt_transport.control import Mailbox
from ckpt_transport.decoding import UNREADABLE
from ckpt_transport.errors import JoinError, PeerLostError
from ckpt_transport.update import messages as m
from ckpt_transport.update.held_manifests import ManifestReader
from ckpt_transport.update.introduction import completed
from ckpt_transport.update.membership import Membership

if TYPE_CHECKING:
    from ckpt_transport.update.invitations import Invitees

MOST_VERSIONS = 100
CURE = "have all source ranks make the same calls, in the same order, with the same options and settings"


@dataclass(slots=True)
class ToldSources:
    """Keeps what other source ranks have said, and what they know of updates that have failed, so that none is told
    twice.

    Attributes:
        manifests: what each has said of what it holds.
        refused: nonces of introductions that were refused; they may come twice, and do not count any more.
        heard: the uids of those who have come for a version, and so hear how that ends, by version.
        differ: the number of the last :class:`Differ` that was said to each, by nonce: a Join from before is followed
            by another.
    """

    manifests: ManifestReader = field(default_factory=ManifestReader)
    refused: set[str] = field(default_factory=set)
    heard: dict[str, set[str]] = field(default_factory=dict)
    differ: dict[str, int] = field(default_factory=dict)

    def begin(self, version: str) -> None:
        """Nobody has come for this version yet; of the versions before only the latest are remembered."""
        self.differ.clear()
        self.heard.pop(version, None)
        self.heard[version] = set()
        for late in list(self.heard)[:-MOST_VERSIONS]:
            del self.heard[late]

    def has_heard(self, version: str, uid: str) -> bool:
        """Whether a source has come for that version before."""
        return uid in self.heard.get(version, ())

    def hears(self, version: str, uid: str) -> None:
        """A source has come for that version. It is noted when it is answered, or will be, whatever interrupts that."""
        self.heard.setdefault(version, set()).add(uid)


class SourceArrivals:
    """Lets source ranks in.

    Args:
        members: of the update.
        mailbox: of rank 0.
        invitees: who is to come.
        reached: takes the addresses of those who have come.
    """

    def __init__(self, members: Membership, mailbox: Mailbox, invitees: Invitees, reached: list[str]) -> None:
        self._members, self._mailbox, self._invitees, self._reached = members, mailbox, invitees, reached
        self._came: dict[int, tuple[str, m.Join]] = {}
        self._old: set[int] = set()
        """Those of which only a Join has come that another follows."""

    def begin(self, myself: m.Join) -> None:
        """Rank 0 is there; this is its introduction."""
        self._came[0] = self._mailbox.address, myself

    @property
    def missing(self) -> list[int]:
        """The ranks that have not come."""
        if len(self._came) == self._invitees.sources and not self._old:
            return []
        return [rank for rank in range(self._invitees.sources) if rank not in self._came or rank in self._old]

    def in_order(self) -> list[tuple[str, m.Join]]:
        """The address and the introduction of each, when all have come."""
        return [self._came[rank] for rank in range(self._invitees.sources)]

    def admit(self, sender: str, join: m.Join) -> None:
        """Give a source that has come its rank, unless that is nobody's, or another's that lives.

        Raises:
            JoinError: its caller asks for something else than that of rank 0; says what each does. The source hears so.
        """
        version = _version_of(join)
        if join.nonce in self._invitees.told.refused:
            return
        told = self._invitees.told
        if version in self._invitees.given_up and not told.has_heard(version, join.uid):
            self._refuse(join, given_up_by_rank_0(version, self._invitees.given_up[version]))
            told.hears(version, join.uid)
            return
        if reason := self._why_not(join):
            self._mailbox.refuse(reason, join.nonce)
            return
        here = _version_of(self._came[0][1])
        if differs := difference(self._came[0][1], join):
            self._refuse(join, differs)
            told.hears(here, join.uid)
            raise JoinError(differs)
        try:
            join = completed(join, told.manifests)
        except UNREADABLE as error:
            self._mailbox.refuse(f"what source rank {join.rank} holds cannot be read: {error}", join.nonce)
            return
        self._came[join.rank] = sender, join
        is_old = join.number < self._invitees.told.differ.get(join.nonce, 0)
        (self._old.add if is_old else self._old.discard)(join.rank)
        self._members.nonces[sender] = join.nonce
        self._reached.append(sender)
        told.hears(here, join.uid)
        self._mailbox.watch(sender)

    def _why_not(self, join: m.Join) -> str:
        if not 0 < join.rank < self._invitees.sources:
            return f"there are {self._invitees.sources} sources, and rank {join.rank} is none of those that join rank 0"
        if join.rank in self._came and self._came[join.rank][1].uid != join.uid:
            with suppress(PeerLostError):
                self._mailbox.check_alive([self._came[join.rank][0]])
                return f"another process is source rank {join.rank} already"
        return ""

    def _refuse(self, join: m.Join, reason: str) -> None:
        """Refuse what was received last; the source may have said it twice, and is not heard again."""
        self._mailbox.refuse(reason, join.nonce)
        self._invitees.told.refused.add(join.nonce)

    @property
    def is_left(self) -> bool:
        """Whether a source that has come has said already that it leaves; nobody has read that yet."""
        came = {(address, join.nonce) for address, join in self._came.values()}
        return any(
            isinstance(message, m.Aborted) and not message.update and (sender, message.nonce) in came
            for sender, message in self._mailbox.unread()
        )

    def withdraw(self, sender: str, aborted: m.Aborted) -> None:
        """A source that has come leaves. Where it has come again since, that counts.

        Raises:
            JoinError: says why.
        """
        for rank, (address, join) in list(self._came.items()):
            if (address, join.nonce) == (sender, aborted.nonce):
                del self._came[rank]
                self._old.discard(rank)
                if self._has_come_again(sender, join):
                    return
                raise JoinError(f"source rank {rank} takes no part in the update: {aborted.reason}")

    def _has_come_again(self, sender: str, left: m.Join) -> bool:
        """Whether a source that has left has made another call for the same version."""
        self._mailbox.pump(0)
        return any(
            address == sender
            and isinstance(join, m.Join)
            and (join.uid, _version_of(join)) == (left.uid, _version_of(left))
            and join.nonce != left.nonce
            for address, join in self._mailbox.unread()
        )

    def check_notice(self, sender: str, notice: m.Absent) -> None:
        """
        Raises:
            JoinError: a source says that it does not come.
        """
        rank, known = notice.rank, self._came.get(notice.rank)
        speaks_for_it = 0 < rank < self._invitees.sources and (known is None or known[0] == sender)
        if notice.reason and notice.version in ("", _version_of(self._came[0][1])) and speaks_for_it:
            raise JoinError(f"source rank {rank} takes no part in the update: {notice.reason}")

    def check_absent(self) -> None:
        """
        Raises:
            JoinError: a source that is waited for has said elsewhere that it does not come.
        """
        if missing := self.missing:
            for rank, reason in self._invitees.absent().items():
                if rank in missing:
                    raise JoinError(f"source rank {rank} takes no part in the update: {reason}")


def difference(first: m.Join, other: m.Join) -> str:
    """Where two source ranks ask for different things, what each asks for, and the cure; else nothing."""
    one, two = _asked_by(first), _asked_by(other)
    differing = [option for option in one if option in two and one[option] != two[option]]
    if not differing:
        return ""
    ones, twos = (", ".join(_in_words(option, asked[option]) for option in differing) for asked in (one, two))
    return f"source rank {first.rank} says {ones}, and source rank {other.rank} says {twos}; {CURE}"


def _asked_by(join: m.Join) -> Mapping[str, str]:
    return {"version": f"'{_version_of(join)}'", **join.asked}


def _in_words(option: str, value: str) -> str:
    return value if option == "call" else f"{option}={value}"


def _version_of(join: m.Join) -> str:
    return "" if join.manifest is None else join.manifest.version


def given_up_by_rank_0(version: str, reason: str) -> str:
    """What those hear who come for a version that rank 0 has given up."""
    return f"source rank 0 has given up the update to '{version}': {reason}"
