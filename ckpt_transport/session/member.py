"""Who waits for invitations to updates: what sinks and holders have in common."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from abc import abstractmethod
from contextlib import suppress
from typing import Self

from ckpt_transport import registry
from ckpt_transport.config import Config
from ckpt_transport.control import Mailbox, Message
from ckpt_transport.errors import PeerLostError, PluginError, UpdateAbortedError, UsageError
from ckpt_transport.session import messages as m
from ckpt_transport.session.available import states_of
from ckpt_transport.session.calls import Calls
from ckpt_transport.session.host import host_name
from ckpt_transport.session.mailbox import open_mailbox
from ckpt_transport.session.participant import Follower, Halted
from ckpt_transport.session.plans import Plans
from ckpt_transport.session.routes import RouteTable
from ckpt_transport.session.stuck import MayBeStuck
from ckpt_transport.transport import Availability

TICK_SECONDS = 0.2
logger = logging.getLogger(__name__)


class InvitedMember(MayBeStuck):
    """Listens at an address and follows one update after the other.

    Args:
        address: where it can be invited; empty for a new address that only this user can reach.
        config: deadlines, budget and secret; by default from the environment.

    Drive it with :meth:`start` (a thread of its own) or :meth:`serve` (yours).
    """

    def __init__(self, address: str = "", config: Config | None = None) -> None:
        self._calls = Calls(self._kind)
        self.config = config if config is not None else Config.load()
        self._mailbox: Mailbox = open_mailbox(address, m.PARTICIPANT, self.config)
        self._table = RouteTable(self._mailbox, lambda name: registry.make(name, self.config.transports))
        self._plans = Plans(self.config.memory_budget)
        self._uid = secrets.token_hex(8)
        self._coordinator = ""
        self._bringing = ""
        self._follower: Follower | None = None
        self._give_up_at = 0.0
        self._watch_over(self.config.heartbeat_timeout)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        return self._mailbox.address

    @property
    @abstractmethod
    def label(self) -> str:
        """What people call it."""

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Serve on a thread of its own until :meth:`close`.

        Raises:
            UsageError: it was started already, was closed, or was made in another process.
        """
        self._calls.check()
        if self._thread is not None:
            raise UsageError(f"this {self._kind} was started already")
        self._thread = threading.Thread(target=self._serve_on_thread, name=f"ckpt-transport-{self._kind}", daemon=True)
        self._thread.start()
        return self

    def serve(self) -> None:
        """Serve on the caller's thread until :meth:`close` is called from another, or in a signal handler.

        Raises:
            UsageError: it is served already, was closed, or was made in another process.
        """
        with self._calls.one("serve()", 0):
            self._idle.clear()
            try:
                _load_transports()
                while not self._stopping.is_set():
                    self._between()
                    received = self._mailbox.receive(TICK_SECONDS)
                    self._doomed = ""
                    with self._watchdog.watching():
                        if received is not None:
                            self._heed(*received)
                        self._check_coordinator()
                    if self._watchdog.came_back():
                        self._come_back()
            finally:
                try:
                    with self._watchdog.watching():
                        if self._follower is not None:
                            self._end(self._follower, UpdateAbortedError(f"the {self._kind} was closed"))
                        self._release()
                finally:
                    self._idle.set()

    def _serve_on_thread(self) -> None:
        with suppress(UsageError):  # it was closed before the thread ran
            self.serve()

    def close(self) -> None:
        """Stop serving and release everything. Idempotent.

        Waits until serving has ended, except inside :meth:`serve`, which ends then. Where a call into a library, a
        loader or the engine does not return, that is logged after two ``heartbeat_timeout``: the address is free then,
        and what the call may still use is given back when it returns. In a child after a fork nothing happens, because
        all of it is the parent's.
        """
        if self._calls.here:
            self._stopping.set()
            if not self._calls.inside:
                if not self._has_ended():
                    self._leave_behind()
                    return
                with self._calls.last():
                    self._release()
                if self._thread is not None:
                    self._thread.join()
                self._watchdog.stop()

    def _release(self) -> None:
        """Give back sockets, routes and memory. Idempotent."""
        self._table.close()
        self._mailbox.close()

    # -- what differs -------------------------------------------------------------------------------------------

    _kind: str

    @abstractmethod
    def _refuses(self, invite: m.Invite) -> str:
        """Why it cannot take part; empty when it can."""

    @abstractmethod
    def _follow(self, invite: m.Invite, deadline: float) -> Follower: ...

    @abstractmethod
    def _introduce(self, invite: m.Invite, states: dict[str, Availability]) -> m.Join: ...

    @abstractmethod
    def _served(self) -> m.ServedVersion: ...

    @abstractmethod
    def _committed(self) -> None:
        """The version is served from now on.

        Raises: why it is not.
        """

    def _given_up(self, follower: Follower, reason: BaseException) -> bool:
        """The update has failed; whether a mix of two versions is left."""
        return False

    def _between(self) -> None:
        """Something to do between messages."""

    def _answers(self, sender: str, message: Message) -> bool:
        """Answer what may be asked at any time; whether that was it."""
        if isinstance(message, m.AskVersion):
            self._mailbox.answer(self._served())
            return True
        return False

    # -- messages -----------------------------------------------------------------------------------------------

    def _heed(self, sender: str, message: Message) -> None:
        """Do as one message says, or refuse it: nothing that it says ends this member."""
        try:
            self._handle(sender, message)
        except Exception as error:
            kind, reason = type(message).__name__, f"{type(error).__name__}: {error}"
            logger.warning("%s refuses a message (%s) of %s: %s", self.label, kind, sender, reason)
            self._mailbox.refuse(reason, getattr(message, "update", ""))

    def _handle(self, sender: str, message: Message) -> None:
        if self._answers(sender, message):
            return
        match message:
            case m.Goodbye() if sender == self._coordinator and self._follower is None:
                self._part_from_coordinator()
            case m.Invite():
                self._join(sender, message)
            case m.Abort() if self._concerns(sender, message.update):
                self._end(self._follower, UpdateAbortedError(message.reason))
            case m.Propose() | m.Open() | m.Connect() | m.Hold() | m.Advance() | m.Run() | m.Halt() | m.Commit() if (
                self._concerns(sender, message.update)
            ):
                self._step(message)

    def _concerns(self, sender: str, update: str) -> bool:
        return self._follower is not None and sender == self._coordinator and update == self._follower.update

    def _join(self, coordinator: str, invite: m.Invite) -> None:
        if self._follower is not None:
            reason = f"{self.label} takes part in an update to '{self._bringing}' led by {self._coordinator}"
            self._mailbox.send(coordinator, m.Busy(invite.update, invite.address, reason))
            return
        refusal = self._refuses(invite)
        if refusal:
            self._mailbox.send(coordinator, m.Failed(invite.update, -1, "JoinError", refusal))
            return
        if coordinator != self._coordinator:
            self._part_from_coordinator()
        self._coordinator, self._bringing = coordinator, invite.version
        self._mailbox.watch(coordinator)
        self._give_up_at = time.monotonic() + self.config.update_timeout
        self._follower = self._follow(invite, self._give_up_at)
        states = states_of(invite.transports)
        self._mailbox.send(coordinator, self._introduce(invite, states))

    def _step(self, message: Message) -> None:
        follower = self._follower
        assert follower is not None
        try:
            if isinstance(message, m.Commit):
                self._committed()
                self._bringing, self._follower = "", None
            answer = follower.answer(message, self._watch)
        except UpdateAbortedError as aborted:
            self._end(follower, aborted)
        except Exception as error:
            failed = m.Failed(follower.update, follower.rank, type(error).__name__, str(error))
            self._mailbox.send(self._coordinator, failed)
            self._end(follower, error)
        else:
            if answer is not None:
                self._mailbox.send(self._coordinator, answer)

    def _watch(self) -> None:
        """Called while the pipeline runs: serve questions, notice an abort or a dead coordinator."""
        with self._seen():
            self._look_around()

    def _look_around(self) -> None:
        assert self._follower is not None
        while (received := self._mailbox.receive(0)) is not None:
            sender, message = received
            if self._answers(sender, message):
                continue
            if isinstance(message, m.Invite):
                self._join(sender, message)
            elif isinstance(message, m.Abort) and self._concerns(sender, message.update):
                raise UpdateAbortedError(message.reason)
            elif isinstance(message, m.Halt) and self._concerns(sender, message.update):
                raise Halted(message.reason)
        self._mailbox.check_alive([self._coordinator])
        if self._stopping.is_set():
            raise UpdateAbortedError(f"the {self._kind} was closed")

    def _check_coordinator(self) -> None:
        try:
            self._mailbox.check_alive([self._coordinator] if self._coordinator else [])
            if self._follower is not None and time.monotonic() > self._give_up_at:
                raise PeerLostError(f"the update by {self._coordinator} did not end before its deadline")
        except PeerLostError as lost:
            if self._follower is not None:
                self._end(self._follower, lost)
            self._part_from_coordinator()

    # -- the end of an update -----------------------------------------------------------------------------------

    def _end(self, follower: Follower | None, reason: BaseException) -> None:
        """The update failed, here or elsewhere."""
        assert follower is not None
        self._follower, self._ending, self._doomed = None, follower, str(reason)
        self._table.abort(reason)
        tainted = self._given_up(follower, reason)
        self._bringing = self._doomed = ""
        self._ending = None
        self._mailbox.send(self._coordinator, m.Aborted(follower.update, follower.rank, tainted, str(reason)))

    def _part_from_coordinator(self) -> None:
        if self._coordinator:
            self._table.close()
            self._mailbox.forget(self._coordinator)
            self._coordinator = ""

    def _host(self) -> str:
        return self.config.host or host_name()


def _load_transports() -> None:
    """Import and probe them before somebody waits for it. What is wrong with one is said when it is asked for."""
    for name in registry.names():
        with suppress(PluginError):
            registry.available(name)
