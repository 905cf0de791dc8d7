"""Source ranks that come for an update which rank 0 has given up are told so, also while rank 0 makes no call."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping

from ckpt_transport.control import Mailbox
from ckpt_transport.errors import ControlError
from ckpt_transport.planning import Role
from ckpt_transport.update import messages as m
from ckpt_transport.update.source_arrivals import ToldSources, given_up_by_rank_0

LOOK_SECONDS = 0.1
"""How often it is looked who has come."""


class LateSources:
    """Answers those that come late, from when rank 0 has given an update up to its next one.

    Args:
        told: what they know already. Who comes again has heard it, and waits for the next update.
    """

    def __init__(self, told: ToldSources) -> None:
        self._told = told
        self._answering: object = None

    def answer(self, mailbox: Mailbox, given_up: Mapping[str, str], seconds: float) -> None:
        """Answer for so long, on a thread of its own.

        Args:
            mailbox: of rank 0.
            given_up: versions, and why.
            seconds: as long as others wait.
        """
        self._answering = task = object()
        until, known = time.monotonic() + seconds, weakref.ref(mailbox)

        with mailbox.borrowed():
            mailbox.bring_back()  # some may have come while the update ended

        def run() -> None:
            while time.monotonic() < until and (box := known()) is not None:
                with box.borrowed():
                    if self._answering is not task:
                        return
                    self._answer_all(box, given_up)
                del box
                time.sleep(LOOK_SECONDS)

        threading.Thread(target=run, name="ckpt-transport-late-sources", daemon=True).start()

    def end(self, mailbox: Mailbox) -> None:
        """Rank 0 hears everybody itself from now on."""
        with mailbox.borrowed():
            self._answering = None

    def _answer_all(self, mailbox: Mailbox, given_up: Mapping[str, str]) -> None:
        try:
            mailbox.pump(0)
            for join in mailbox.receive_all(m.Join):
                assert isinstance(join, m.Join)
                version = _version_of(join)
                if version in given_up and not self._told.has_heard(version, join.uid):
                    self._told.refused.add(join.nonce)
                    mailbox.refuse(given_up_by_rank_0(version, given_up[version]), join.nonce)
                    self._told.hears(version, join.uid)
                elif join.nonce not in self._told.refused:
                    mailbox.keep_for_later()
        except ControlError:
            self._answering = None


def _version_of(join: m.Join) -> str:
    """What a source that comes by itself brings; nothing of others."""
    comes_by_itself = join.role is Role.SOURCE and not join.invited and join.manifest is not None
    return join.manifest.version if comes_by_itself and join.manifest is not None else ""
