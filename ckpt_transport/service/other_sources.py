"""Rank 0 hears from the other source ranks what they hold, and tells them what to bring, before it leads an update."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ckpt_transport.control import Mailbox
from ckpt_transport.planning import Role, ServedShares
from ckpt_transport.update import messages as m
from ckpt_transport.update.invitations import Invitees
from ckpt_transport.update.membership import TICK_SECONDS
from ckpt_transport.update.turn import Turn


class NoDeltaError(Exception):
    """Everything is sent. The text says why.

    Attributes:
        silent: sinks that have not answered for ``join_timeout``.
    """

    def __init__(self, why: str, silent: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.silent = tuple(silent)


class OtherSources:
    """Those above rank 0 that take part in one update. Their last words are left for whoever gathers its members.

    Args:
        mailbox: of rank 0, whose address they know.
        invitees: who takes part.
        version: what is brought.
        turn: of the update.
        timeout: seconds that they may take to come, and to find what differs.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        invitees: Invitees,
        version: str,
        turn: Turn,
        timeout: float,
    ) -> None:
        self._mailbox, self._ranks, self._version = mailbox, range(1, invitees.sources), version
        self._invitees, self._turn, self._timeout = invitees, turn, timeout
        self._number = 0
        self._came: dict[int, tuple[str, m.Join]] = {}
        """Those who have followed what they were told last."""
        self._latest: dict[int, tuple[str, m.Join]] = {}
        """What each has said last."""
        self._known: set[tuple[str, str]] = set()
        """The addresses and nonces of all that have come, however often they were told to come again."""

    def check_hold(self, base_update: str) -> None:
        """
        Raises:
            NoDeltaError: one does not hold what that update has brought, or does not come.
        """
        self.hear()
        if lacking := [rank for rank, (_, join) in sorted(self._came.items()) if join.holds != base_update]:
            raise NoDeltaError(f"source rank {lacking[0]} does not hold what these sinks have got last")

    def tell(self, base_update: str, served: ServedShares) -> None:
        """Have each bring what differs from what that update has brought; everything, where it is empty.

        Args:
            base_update: the update.
            served: what sinks serve of the version.
        """
        self._number += 1
        for address, join in self._latest.values():
            self._invitees.told.differ[join.nonce] = self._number
            differ = m.Differ(nonce=join.nonce, base_update=base_update, number=self._number, served=served)
            self._mailbox.send(address, differ)

    def hear(self) -> None:
        """Wait until each has joined as it was told.

        Raises:
            NoDeltaError: one has not come in time, or has left.
        """
        self._came = {}
        self._mailbox.bring_back()
        deadline = time.monotonic() + self._timeout
        while missing := [rank for rank in self._ranks if rank not in self._came]:
            self._turn.check()
            received = self._mailbox.receive(TICK_SECONDS)
            if received is not None:
                self._take_in(*received)
            elif time.monotonic() > deadline or self._invitees.absent():
                raise NoDeltaError(f"source rank {missing[0]} does not say what it holds")
        for sender, message in self._mailbox.unread():
            self._check_stays(sender, message)

    def _check_stays(self, sender: str, message: object) -> None:
        """
        Raises:
            NoDeltaError: one that has come leaves. Whoever gathers the members says of which rank that is.
        """
        if isinstance(message, m.Aborted) and not message.update and (sender, message.nonce) in self._known:
            raise NoDeltaError(f"a source rank has left: {message.reason}")

    def _take_in(self, sender: str, message: object) -> None:
        match message:
            case m.Absent():
                self._mailbox.keep_for_later()
                if message.reason and message.version in ("", self._version):
                    raise NoDeltaError(f"source rank {message.rank} takes no part: {message.reason}")
            case m.Aborted(update=""):
                self._mailbox.keep_for_later()
                self._check_stays(sender, message)
            case m.Join(nonce=nonce) if nonce in self._invitees.told.refused:
                return
            case m.Join(role=Role.SOURCE, invited="", manifest=manifest) if manifest is not None:
                if manifest.version != self._version:
                    self._mailbox.keep_for_later()
                    if manifest.version not in self._invitees.given_up:
                        raise NoDeltaError(f"source rank {message.rank} comes for '{manifest.version}'")
                    return
                if message.rank not in self._ranks:
                    return
                self._mailbox.keep_for_later()
                self._known.add((sender, message.nonce))
                self._latest[message.rank] = sender, message
                if message.number == self._number:
                    self._came[message.rank] = sender, message
