"""Rank 0 calls the source ranks that took part in its last update: they need not look elsewhere whether it leads one.

To look costs each of them a thread and some questions to torch's store, at each step of a training. Who is not called
soon looks nevertheless: rank 0 may have been started anew, or have failed.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from hmac import compare_digest
from typing import Any

from ckpt_transport.control import Mailbox
from ckpt_transport.service.rendezvous import Rendezvous
from ckpt_transport.service.torch_store import Recheck, Wait
from ckpt_transport.update import messages as m

WAIT_SECONDS = 0.1
"""For so long a rank waits to be called before it looks."""


class Caller:
    """Calls, as rank 0.

    Attributes:
        fellows: those who took part in the last update: the nonce of each, by address.
        lead: what they are called for: the version, and the token of what is said of it elsewhere.
    """

    def __init__(self) -> None:
        self.fellows: Mapping[str, str] = {}
        self.lead = "", ""
        self._called: Mapping[str, str] = {}
        self._mailbox: Mailbox | None = None

    def call(self, mailbox: Mailbox) -> None:
        """Have those who wait come."""
        self._mailbox, self._called = mailbox, self.fellows
        self._say(*self.lead)

    def call_off(self) -> None:
        """Have those who were called look elsewhere what has become of it: they may not have come yet."""
        self._say("", "")

    def _say(self, version: str, token: str) -> None:
        for address, nonce in self._called.items():
            assert self._mailbox is not None, "somebody was called"
            call = m.Summons(nonce=nonce, version=version, address=self._mailbox.address, token=token)
            self._mailbox.send(address, call)


class Called:
    """Hears calls, as a rank above 0."""

    def __init__(self) -> None:
        self._nonce = ""

    def took_part(self, nonce: str) -> None:
        """An update has ended well; this rank has said that nonce to rank 0, and to nobody else."""
        self._nonce = nonce

    def find(self, version: str, meeting: Rendezvous, mailbox: Mailbox | None, given_up: Collection[str]) -> str:
        """Wait until rank 0 leads an update to ``version``; the coordinator's address.

        Args:
            version: of the update.
            meeting: where this rank looks for it.
            mailbox: this rank's, if it has one.
            given_up: as that of :meth:`Rendezvous.find`.

        Raises: as :meth:`Rendezvous.find`.
        """
        nonce, self._nonce = self._nonce, ""
        if mailbox is None:
            return meeting.find(version, given_up)
        if (
            nonce
            and meeting.needs_calls
            and not given_up
            and (call := self._heard(mailbox, version, nonce)) is not None
        ):
            meeting.was_called(version, call.token)
            return call.address
        return meeting.find(version, given_up, _hearing(mailbox))

    def _heard(self, mailbox: Mailbox, version: str, nonce: str) -> m.Summons | None:
        """Wait until rank 0 calls for a version; None where this rank has to look."""
        deadline = time.monotonic() + WAIT_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            calls = [call for call in mailbox.receive_all(m.Summons) if isinstance(call, m.Summons)]
            if own := [call for call in calls if compare_digest(call.nonce.encode(), nonce.encode())]:
                return own[-1] if own[-1].version == version else None
            mailbox.pump(left)
        return None


def _hearing(mailbox: Mailbox) -> Wait:
    """Waits for what looks for rank 0, and has it look at once when rank 0 calls."""

    def wait(outcome: Future[Any], timeout: float, recheck: Recheck) -> None:
        outcome.add_done_callback(lambda _: mailbox.wake())
        deadline = time.monotonic() + timeout
        while not outcome.done() and (left := deadline - time.monotonic()) > 0:
            mailbox.pump(left)
            for _ in mailbox.receive_all(m.Summons):
                recheck.look()

    return wait
