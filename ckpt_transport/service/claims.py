"""One program at a time drives an engine from outside; claims say which one, and what it has left behind.

A program claims an engine at one of its sinks, before it pauses or resumes it, and says there what it has begun. The
sink hears the program's heartbeats: whoever claims the engine next waits while the other lives, and ends what one has
begun that lives no more.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ckpt_transport.config import Config
from ckpt_transport.control import Mailbox, addresses
from ckpt_transport.control.messages import Refused
from ckpt_transport.errors import CkptTransportError, EngineError, PeerLostError
from ckpt_transport.service import questions as q
from ckpt_transport.update.mailbox import Rotation, open_mailbox

ASK_AGAIN_SECONDS = 0.25
"""How often an engine is claimed again that another program drives."""
MAX_BEGUN, MAX_NAME = 16, 64
"""What is noted is bounded, whoever sends what."""


@dataclass
class ClaimRecord:
    """Records what a sink knows of the program that drives its engine.

    Attributes:
        holder: the program's mailbox; empty when nobody drives the engine.
        leader: what people call it.
        begun: what was begun in the engine and has not been ended, whoever has begun it. Safe to use from any thread.
    """

    holder: str = ""
    leader: str = ""
    begun: set[str] = field(default_factory=set)

    def take(self, sender: str, claim: q.Claim) -> q.Claimed:
        """Answer a claim; it is the sender's unless another has it."""
        if self.holder not in ("", sender):
            return q.Claimed(claim.number, self.leader, ())
        self.holder, self.leader = sender, claim.leader
        self._note(claim.begun, claim.ended)
        return q.Claimed(claim.number, "", tuple(sorted(self.begun)))

    def look_after(self, mailbox: Mailbox) -> None:
        """Whoever has driven the engine and shows no sign of life at the sink's mailbox drives it no more."""
        try:
            mailbox.check_alive([self.holder] if self.holder else [])
        except PeerLostError:
            self.release(mailbox)

    def release(self, mailbox: Mailbox) -> None:
        """Nobody drives the engine any more, nor is listened for. What was begun and not ended is left to the next."""
        mailbox.forget(self.holder)
        self.holder = self.leader = ""

    def _note(self, begun: Collection[str], ended: Collection[str]) -> None:
        self.begun.difference_update(ended)
        self.begun.update([what for what in begun if len(what) <= MAX_NAME][: MAX_BEGUN - len(self.begun)])


@dataclass(frozen=True, slots=True)
class EngineClaim:
    """Lets this program drive an engine, until :meth:`release`.

    Attributes:
        engine: what people call it.
        sink: where it was claimed.
        leader: what others are told of who drives it.
        begun: what others had begun there and not ended, when it was claimed.
    """

    engine: str
    sink: str
    leader: str
    begun: frozenset[str]
    _claims: Claims

    def begin(self, what: str) -> None:
        """Say that ``what`` is about to be begun in the engine.

        Raises:
            EngineError: another program drives it now, or its sink does not answer.
        """
        self._claims.note(self, begun=(what,))

    def end(self, what: str) -> None:
        """Say that ``what`` has been ended, and wait for no answer: nothing depends on it."""
        self._claims.tell(self, ended=(what,))

    def check(self) -> None:
        """Raises as :meth:`begin` when the engine is another's by now."""
        self._claims.note(self)

    def release(self) -> None:
        """Let others drive the engine. What was begun and not ended is left to them."""
        self._claims.release(self.sink)


class Claims:
    """Claims engines for this program. Any thread may call.

    Args:
        config: deadlines and secret.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._mailbox: Mailbox | None = None
        self._rotation: Rotation | None = None
        self._number = 0
        self._lock = threading.Lock()

    def take(self, engines: Mapping[str, str], leader: str) -> dict[str, EngineClaim]:
        """Claim all of ``engines``, in the same order as everybody else does.

        Args:
            engines: for each, by what people call it, the address of the sink at which it is claimed.
            leader: what others are told of who drives it.

        Raises:
            EngineError: another program has driven one for all of ``join_timeout``, or a sink does not answer; names
                it. Nothing is claimed then.
        """
        taken: dict[str, EngineClaim] = {}
        deadline = time.monotonic() + self._config.join_timeout
        self._open(list(engines.values()))
        try:
            for engine, sink in sorted(engines.items(), key=lambda each: each[1]):
                taken[engine] = self._take(engine, sink, leader, deadline)
        except BaseException:
            for sink in engines.values():
                self.release(sink)
            raise
        return taken

    def _take(self, engine: str, sink: str, leader: str, deadline: float) -> EngineClaim:
        while True:
            left = max(deadline - time.monotonic(), self._config.heartbeat_timeout)
            claimed = self._ask(engine, sink, leader, timeout=left)
            if not claimed.leader:
                return EngineClaim(engine, sink, leader, frozenset(claimed.begun), self)
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{engine} is driven by {claimed.leader}, which has not ended within "
                    f"{self._config.join_timeout:g} s (join_timeout); wait for it, or end that process"
                )
            time.sleep(ASK_AGAIN_SECONDS)

    def note(self, claim: EngineClaim, begun: tuple[str, ...] = (), ended: tuple[str, ...] = ()) -> None:
        """See :meth:`EngineClaim.begin`."""
        claimed = self._ask(claim.engine, claim.sink, claim.leader, begun, ended, self._config.heartbeat_timeout)
        if claimed.leader:
            raise EngineError(f"{claim.engine} is driven by {claimed.leader} by now, and is left to it")

    def tell(self, claim: EngineClaim, ended: tuple[str, ...]) -> None:
        """See :meth:`EngineClaim.end`."""
        with self._lock, contextlib.suppress(CkptTransportError):
            if self._mailbox is not None:
                self._number += 1
                self._mailbox.send(claim.sink, q.Claim(self._number, claim.leader, (), ended))

    def release(self, sink: str) -> None:
        """See :meth:`EngineClaim.release`. A sink that is gone, and one that is another's, are left alone."""
        with self._lock, contextlib.suppress(CkptTransportError):
            if self._mailbox is not None:
                self._part(self._mailbox, sink)

    def _part(self, mailbox: Mailbox, sink: str) -> None:
        """Release comes first: a sink that does not hear it sees this mailbox live on, whoever else is watched."""
        try:
            mailbox.send(sink, q.Release())
        except CkptTransportError:
            raise
        except BaseException:
            mailbox.send(sink, q.Release())
            raise
        finally:
            mailbox.unwatch(sink)

    def _ask(
        self,
        engine: str,
        sink: str,
        leader: str,
        begun: tuple[str, ...] = (),
        ended: tuple[str, ...] = (),
        timeout: float = 0.0,
    ) -> q.Claimed:
        with self._lock:
            mailbox = self._mailbox
            assert mailbox is not None, "nothing was claimed"
            while mailbox.receive(0) is not None:
                """Nobody waits for this answer any more."""
            self._number += 1
            mailbox.watch(sink)
            mailbox.send(sink, q.Claim(self._number, leader, begun, ended))
            deadline = time.monotonic() + timeout
            while (received := mailbox.receive(max(deadline - time.monotonic(), 0.0))) is not None:
                match received[1]:
                    case q.Claimed(number=self._number) as claimed:
                        return claimed
                    case Refused(reason=reason) if received[0] == sink:
                        raise EngineError(f"{engine} cannot be claimed at its sink {sink}: {reason}")
        raise EngineError(f"{engine}: its sink {sink} has not answered within {timeout:.0f} s")

    def _open(self, sinks: Sequence[str]) -> None:
        """A mailbox from which heartbeats reach every sink, kept for later updates."""
        interface = self._config.interface
        with self._lock:
            if self._mailbox is not None and not addresses.serves(self._mailbox.address, sinks, interface):
                self._mailbox.close()
                self._mailbox = None
            if self._mailbox is None:
                address = addresses.place_for(sinks, interface)
                self._mailbox = open_mailbox(address, (q.Claimed,), self._config)
                self._rotation = Rotation(self._mailbox, self._config)
            if self._rotation is not None:
                self._rotation.look()

    def close(self) -> None:
        """Part from all sinks. Idempotent."""
        with self._lock:
            if self._mailbox is not None:
                self._mailbox.close()
                self._mailbox = None
