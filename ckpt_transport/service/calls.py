"""Rank 0 calls the source ranks that took part in its last update: they need not look elsewhere whether it leads one.

To look costs each of them a thread and some questions to torch's store, at each step of a training. Who is not called
soon looks nevertheless: rank 0 may have been started anew, or have failed. So rank 0 says there that it leads one
where somebody was not called, or does not come soon.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from hmac import compare_digest
from typing import Any

from ckpt_transport.control import Mailbox
from ckpt_transport.service.rendezvous import Rendezvous
from ckpt_transport.service.torch_store import Recheck
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

    def calls(self, number: int) -> bool:
        """Whether so many are called."""
        return len(self.fellows) == number

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
        calls = _Calls(mailbox, version, "" if given_up or not meeting.needs_calls else nonce)
        try:
            calls.wait(WAIT_SECONDS)
            return meeting.find(version, given_up, calls.wait_looking)
        except _CalledError as called:
            meeting.was_called(version, called.call.token)
            return called.call.address


class _CalledError(Exception):
    """Rank 0 has called this rank to the update that it comes for, so that it need not look.

    Attributes:
        call: what it has said.
    """

    def __init__(self, call: m.Summons) -> None:
        super().__init__("rank 0 calls")
        self.call = call


class _Calls:
    """What rank 0 says to a rank that comes for a version.

    Args:
        mailbox: of the rank.
        version: it.
        nonce: what a call carries; empty where none counts.
    """

    def __init__(self, mailbox: Mailbox, version: str, nonce: str) -> None:
        self._mailbox, self._version, self._nonce = mailbox, version, nonce

    def wait(self, seconds: float) -> None:
        """Wait for a call, unless none counts, or one for something else has come.

        Raises:
            _CalledError: rank 0 calls.
        """
        deadline = time.monotonic() + seconds
        while self._nonce and (left := deadline - time.monotonic()) > 0:
            if self._hear():
                return
            self._mailbox.pump(left)

    def wait_looking(self, outcome: Future[Any], timeout: float, recheck: Recheck) -> None:
        """Wait for what looks for rank 0, and have it look at once when rank 0 calls for something else.

        Raises: as :meth:`wait`.
        """
        outcome.add_done_callback(lambda _: self._mailbox.wake())
        deadline = time.monotonic() + timeout
        while not outcome.done() and (left := deadline - time.monotonic()) > 0:
            self._mailbox.pump(left)
            if self._hear():
                recheck.look()

    def _hear(self) -> bool:
        """Whether rank 0 has called for something else.

        Raises: as :meth:`wait`.
        """
        calls = [call for call in self._mailbox.receive_all(m.Summons) if isinstance(call, m.Summons)]
        own = [call for call in calls if self._nonce and compare_digest(call.nonce.encode(), self._nonce.encode())]
        if own and own[-1].version == self._version:
            raise _CalledError(own[-1])
        return bool(calls)
