"""The sink side: answers invitations, follows an update, and says which version is served."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Self

from ckpt_transport import registry
from ckpt_transport.config import Config
from ckpt_transport.control import Mailbox, Message, addresses
from ckpt_transport.errors import PeerLostError, PluginError, UpdateAbortedError
from ckpt_transport.memory import name_of
from ckpt_transport.planning import Role
from ckpt_transport.session import messages as m
from ckpt_transport.session.engine import Engine
from ckpt_transport.session.host import host_name
from ckpt_transport.session.mailbox import open_mailbox
from ckpt_transport.session.participant import Follower, Participant
from ckpt_transport.session.plans import Plans
from ckpt_transport.session.routes import RouteTable

TICK_SECONDS = 0.2


class Sink:
    """Makes one engine updatable at an address. Drive it with :meth:`start` (own thread) or :meth:`serve` (yours).

    Args:
        engine: the way into the engine.
        address: where it can be invited; empty for a new address that only this user can reach.
        version: what the engine serves now.
        config: deadlines, budget and secret; by default from the environment.
    """

    def __init__(self, engine: Engine, address: str = "", version: str = "", config: Config | None = None) -> None:
        self.config = config if config is not None else Config.load()
        self._engine = engine
        self._mailbox: Mailbox = open_mailbox(address, m.PARTICIPANT, self.config)
        self._table = RouteTable(self._mailbox, lambda name: registry.make(name, self.config.transports))
        self._plans = Plans()
        self._uid = secrets.token_hex(8)
        self._version, self._tainted = version, ""
        self._coordinator = ""
        self._bringing = ""
        self._follower: Follower | None = None
        self._give_up_at = 0.0
        self._announcing: deque[str] = deque()
        self._announced = ""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        return self._mailbox.address

    @property
    def label(self) -> str:
        """What people call this sink."""
        return self._engine.label

    @property
    def version(self) -> str:
        """The version that is served; of a tainted sink, the one it served last."""
        return self._version

    @property
    def tainted(self) -> str:
        """Why this sink must not serve; empty when it may."""
        return self._tainted

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Serve on a thread of its own until :meth:`close`."""
        self._thread = threading.Thread(target=self.serve, name="ckpt-transport-sink", daemon=True)
        self._thread.start()
        return self

    def serve(self) -> None:
        """Serve on the caller's thread until :meth:`close` is called from another."""
        _load_transports()
        try:
            while not self._stopping.is_set():
                self._announce()
                received = self._mailbox.receive(TICK_SECONDS)
                if received is not None:
                    self._handle(*received)
                self._check_coordinator()
        finally:
            if self._follower is not None:
                self._end(self._follower, UpdateAbortedError("the sink was closed"))
            self._table.close()
            self._mailbox.close()

    def announce(self, address: str) -> None:
        """Tell the mailbox at ``address`` where this sink is and what it serves; from any thread."""
        self._announcing.append(addresses.check(address))

    def close(self) -> None:
        """Stop serving and release everything. Idempotent."""
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        elif self._thread is None:
            self._table.close()
            self._mailbox.close()

    # -- messages -----------------------------------------------------------------------------------------------

    def _handle(self, sender: str, message: Message) -> None:
        match message:
            case m.AskVersion():
                self._mailbox.send(sender, self._served())
            case m.Goodbye() if sender == self._coordinator and self._follower is None:
                self._part_from_coordinator()
            case m.Invite():
                self._join(sender, message)
            case m.Abort() if self._concerns(sender, message.update):
                self._end(self._follower, UpdateAbortedError(message.reason))
            case m.Propose() | m.Open() | m.Connect() | m.Hold() | m.Advance() | m.Run() | m.Commit():
                if self._concerns(sender, message.update):
                    self._step(message)

    def _concerns(self, sender: str, update: str) -> bool:
        return self._follower is not None and sender == self._coordinator and update == self._follower.update

    def _join(self, coordinator: str, invite: m.Invite) -> None:
        if self._follower is not None:
            reason = f"{self._engine.label} is being updated to '{self._bringing}' by {self._coordinator}"
            self._mailbox.send(coordinator, m.Busy(invite.update, invite.address, reason))
            return
        if coordinator != self._coordinator:
            self._part_from_coordinator()
        self._coordinator, self._bringing = coordinator, invite.version
        self._mailbox.watch(coordinator)
        self._give_up_at = time.monotonic() + self.config.update_timeout
        participant = Participant(self._mailbox, self._table, self._plans, (), self._engine, self._give_up_at)
        self._follower = Follower(invite.update, participant, self._engine, self.config.join_timeout)
        states = {name: registry.available(name) for name in invite.transports}
        join = m.Join(
            update=invite.update,
            role=Role.SINK,
            invited=invite.address,
            uid=self._uid,
            label=self._engine.label,
            host=self.config.host or host_name(),
            budget=self.config.memory_budget,
            transports=tuple(name for name, state in states.items() if state.ok),
            unavailable={name: state.reason for name, state in states.items() if not state.ok},
            routes=self._table.names,
            engine=self._engine.group,
            whole_tensors=self._engine.whole_tensors,
            keeps_tensors=self._engine.keeps_tensors,
            devices=tuple(filter(None, [name_of(self._engine.device)])),
            plan=self._plans.shape,
        )
        self._mailbox.send(coordinator, join)

    def _step(self, message: Message) -> None:
        follower = self._follower
        assert follower is not None
        if isinstance(message, m.Commit):
            self._version, self._tainted, self._bringing, self._follower = self._bringing, "", "", None
        try:
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
        assert self._follower is not None
        while (received := self._mailbox.receive(0)) is not None:
            sender, message = received
            if isinstance(message, m.AskVersion):
                self._mailbox.send(sender, self._served())
            elif isinstance(message, m.Invite):
                self._join(sender, message)
            elif isinstance(message, m.Abort) and self._concerns(sender, message.update):
                raise UpdateAbortedError(message.reason)
        self._mailbox.check_alive([self._coordinator])
        if self._stopping.is_set():
            raise UpdateAbortedError("the sink was closed")

    def _announce(self) -> None:
        while self._announcing:
            address = self._announcing.popleft()
            if self._announced not in ("", address, self._coordinator):
                self._mailbox.forget(self._announced)
            self._announced = address
            self._mailbox.send(address, m.Here(self.address, self._served()))

    def _check_coordinator(self) -> None:
        try:
            self._mailbox.check_alive()
            if self._follower is not None and time.monotonic() > self._give_up_at:
                raise PeerLostError(f"the update by {self._coordinator} did not end before its deadline")
        except PeerLostError as lost:
            if self._follower is not None:
                self._end(self._follower, lost)
            self._part_from_coordinator()

    # -- the end of an update -----------------------------------------------------------------------------------

    def _end(self, follower: Follower | None, reason: BaseException) -> None:
        """The update failed: the old version goes on, unless a byte of the new one is in."""
        assert follower is not None
        self._follower = None
        self._table.abort(reason)
        if follower.applying:
            self._tainted = f"an update to '{self._bringing}' failed half-way: {reason}"
            self._engine.taint(self._tainted)
        if not self._tainted:
            self._engine.resume()
        self._bringing = ""
        aborted = m.Aborted(follower.update, follower.rank, bool(self._tainted))
        self._mailbox.send(self._coordinator, aborted)

    def _part_from_coordinator(self) -> None:
        if self._coordinator:
            self._table.close()
            self._mailbox.forget(self._coordinator)
            self._coordinator = ""

    def _served(self) -> m.ServedVersion:
        return m.ServedVersion(self._engine.label, self._version, self._tainted, self._bringing)


def _load_transports() -> None:
    """Import and probe them before somebody waits for it. What is wrong with one is said when it is asked for."""
    for name in registry.names():
        with suppress(PluginError):
            registry.available(name)
