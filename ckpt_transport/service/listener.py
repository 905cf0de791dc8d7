"""A listener waits for invitations to updates; this is what sinks and holders have in common."""

from __future__ import annotations

import logging
import threading
import time
from abc import abstractmethod
from hmac import compare_digest

import msgspec

from ckpt_transport.config import Config
from ckpt_transport.control import Mailbox, Message
from ckpt_transport.control.messages import Refused
from ckpt_transport.errors import (
    DeltaRefusedError,
    JoinError,
    PeerLostError,
    TransferTimeout,
    UpdateAbortedError,
)
from ckpt_transport.events import about
from ckpt_transport.memory import uninterrupted
from ckpt_transport.reasons import named_reason, reason_of
from ckpt_transport.service import questions as q
from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.service.main_thread import why_ending
from ckpt_transport.service.served import Served
from ckpt_transport.service.short_turns import short_turns
from ckpt_transport.service.watched import let_watch
from ckpt_transport.transports import registry
from ckpt_transport.update import messages as m
from ckpt_transport.update.available import look_at_all, states_of
from ckpt_transport.update.challenges import Challenges
from ckpt_transport.update.follower import Follower
from ckpt_transport.update.introduction import Introducer, States
from ckpt_transport.update.mailbox import Rotation, open_mailbox
from ckpt_transport.update.participant import Halted
from ckpt_transport.update.plan_cache import PlanCache
from ckpt_transport.update.protocol import State, exchange_of, moves_bytes, parts_of
from ckpt_transport.update.routes import RouteTable

logger = logging.getLogger(__name__)


class Listener(Served):
    """Listens at an address and follows one update after the other.

    Args:
        address: where it can be invited; empty for a new address that only this user can reach.
        config: deadlines, budget and secret; by default from the environment.

    Drive it with :meth:`start` (a thread of its own) or :meth:`serve` (yours).
    """

    def __init__(self, address: str = "", config: Config | None = None) -> None:
        self._call_guard = CallGuard(self._kind)
        self.config = Config.given(config)
        let_watch(self.config)
        look_at_all()
        self._plans = PlanCache(self.config.memory_budget)
        self._introducer = Introducer(self.config)
        self._challenges = Challenges()
        self._coordinator = self._nonce = self._target_version = self._left = ""
        self._introduction: m.Join | None = None
        self._follower: Follower | None = None
        self._watch_over(self.config.heartbeat_timeout)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        opened: list[Mailbox] = []
        try:
            uninterrupted(lambda: opened.append(open_mailbox(address, q.PARTICIPANT, self.config)))
            (self._mailbox,) = opened
            self._rotation = Rotation(self._mailbox, self.config)
            self._table = RouteTable(self._mailbox, lambda name: registry.make(name, self.config.transports))
        except BaseException:
            for mailbox in opened:
                mailbox.close()
            raise

    @property
    def address(self) -> str:
        return self._mailbox.address

    @property
    @abstractmethod
    def label(self) -> str:
        """What people call it."""

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
    def _introduce(self, invite: m.Invite, states: States) -> m.Join:
        """The Join of this member, but for what one invitation is about."""

    @abstractmethod
    def _served(self) -> q.ServedVersion: ...

    @abstractmethod
    def _committed(self) -> None:
        """The version is served from now on.

        Raises: why it is not.
        """

    def _dismissed(self, follower: Follower) -> None:
        """The update has ended and changed nothing: what is served goes on being served.

        Raises: why that is not so.
        """

    def _given_up(self, follower: Follower, reason: BaseException) -> bool:
        """The update has failed; whether a mix of two versions is left."""
        return False

    def _between(self) -> None:
        """Something to do between messages."""

    def _answers(self, sender: str, message: Message) -> bool:
        """Answer what may be asked at any time; whether that was it."""
        if isinstance(message, q.AskVersion):
            self._mailbox.answer(self._served())
            return True
        return False

    # -- messages -----------------------------------------------------------------------------------------------

    def _follow_or_refuse(self, sender: str, message: Message) -> None:
        """Do as one message says, or refuse it: nothing that it says ends this member."""
        try:
            self._handle(sender, message)
        except Exception as error:
            self._refuse(sender, message, error)

    def _refuse(self, sender: str, message: Message, error: Exception) -> None:
        kind, reason = type(message).__name__, named_reason(error)
        logger.warning("%s refuses a message (%s) of %s: %s", self.label, kind, sender, reason)
        self._mailbox.refuse(reason, getattr(message, "update", ""))

    def _handle(self, sender: str, message: Message) -> None:
        follower = self._follower
        try:
            if self._answers(sender, message):
                return
            if isinstance(message, m.Invite):
                self._consider(sender, message)
        except UpdateAbortedError as over:
            self._lose(follower, over)
        match message:
            case m.Goodbye() if self._is_mine(sender, message) and follower is None:
                self._part_from_coordinator()
            case Refused(about=about) if follower is not None and (sender, about) == (
                self._coordinator,
                follower.update,
            ):
                self._lose(follower, UpdateAbortedError(f"{sender} refuses: {message.reason}"))
            case m.Order() if not isinstance(message, m.Invite) and self._may_say(sender, message):
                self._mailbox.believe()
                if isinstance(message, m.Abort):
                    self._end(follower, UpdateAbortedError(message.reason))
                else:
                    self._step(message)

    def _is_mine(self, sender: str, goodbye: m.Goodbye) -> bool:
        """Whether it comes from the coordinator of the last update."""
        return sender == self._coordinator and self._knows(goodbye)

    def _has_left(self, order: m.AnyOrder) -> bool:
        """Whether this member gave up the update before its coordinator could know."""
        return self._follower is None and order.update == self._left and self._knows(order)

    def _knows(self, order: m.AnyOrder | m.Goodbye) -> bool:
        """Whether it carries the nonce of the coordinator of the last update."""
        return compare_digest(order.nonce.encode(), self._nonce.encode())

    def _concerns(self, sender: str, order: m.AnyOrder) -> bool:
        """Whether an order is to be followed."""
        return self._follower is not None and sender == self._coordinator and not self._follower.objection(order)

    def _may_say(self, sender: str, order: m.AnyOrder) -> bool:
        """Whether an order is followed; else its sender is told why not, unless it was told that this member left."""
        if self._has_left(order):
            return False
        if self._follower is None or sender != self._coordinator:
            objection = f"{self.label} takes part in no update that {sender} leads"
        else:
            objection = self._follower.objection(order)
        if objection:
            logger.info("%s refuses a message (%s) of %s: %s", self.label, type(order).__name__, sender, objection)
            self._mailbox.refuse(objection, order.update)
        return not objection

    def _consider(self, coordinator: str, invite: m.Invite) -> None:
        """An invitation: it counts when whoever sent it reads what is sent to that address.

        Raises:
            UpdateAbortedError: the coordinator leads another update by now than the one this member takes part in.
        """
        if not self._challenges.is_met(coordinator, invite):
            nonce = self._challenges.nonce(coordinator, invite.update)
            self._mailbox.send_once(coordinator, m.Challenge(invite.update, invite.address, nonce))
            return
        follower = self._follower
        if follower is None:
            self._join(coordinator, invite)
        elif (coordinator, invite.update, follower.state) == (self._coordinator, follower.update, State.INVITED):
            assert self._introduction is not None
            self._mailbox.send(coordinator, msgspec.structs.replace(self._introduction, invited=invite.address))
        else:
            reason = f"{self.label} takes part in an update to '{self._target_version}' led by {self._coordinator}"
            self._mailbox.send_once(coordinator, m.Busy(invite.update, invite.address, reason))
            if coordinator == self._coordinator and invite.update != follower.update:
                raise UpdateAbortedError(f"{coordinator} leads another update now")

    def _join(self, coordinator: str, invite: m.Invite) -> None:
        ending = why_ending()
        refusal = f"{self.label}: {ending}" if ending else self._refuses(invite)
        if refusal:
            kind = DeltaRefusedError if invite.delta else JoinError
            self._mailbox.send_once(coordinator, m.Failed(invite.update, kind.__name__, refusal))
            return
        if coordinator != self._coordinator:
            self._part_from_coordinator()
        deadline = time.monotonic() + self.config.update_timeout
        introduction = self._introduce(invite, states_of(invite.transports))
        self._introduction = msgspec.structs.replace(
            introduction, update=invite.update, invited=invite.address, nonce=invite.nonce
        )
        self._follower = self._follow(invite, deadline)
        self._coordinator, self._target_version, self._nonce = coordinator, invite.version, invite.nonce
        about.update = invite.update
        self._mailbox.watch(coordinator)
        self._mailbox.send(coordinator, self._introduction)

    def _step(self, order: m.AnyOrder) -> None:
        follower = self._follower
        assert follower is not None
        try:
            if isinstance(order, m.Commit):
                self._committed()
                self._leave()
            elif isinstance(order, m.Dismiss):
                self._dismissed(follower)
                self._leave()
            answer = self._challenges.with_welcome(self._answer(follower, order), self._coordinator)
        except UpdateAbortedError as aborted:
            self._end(follower, aborted)
        except Exception as error:
            failed = m.Failed(follower.update, type(error).__name__, str(error))
            self._tell_coordinator(failed)
            self._end(follower, error)
        else:
            if answer is not None:
                self._tell_coordinator(answer)

    def _answer(self, follower: Follower, order: m.AnyOrder) -> m.Reply | None:
        """Do as an order says, and return the answer. What an order's first part does not do its next cannot."""
        for part in parts_of(order):
            if moves_bytes(part):
                short_turns.want(self, short=False)
            answer = follower.answer(part, self._watch)
            if not isinstance(answer, exchange_of(part).answer):
                break
        return answer

    def _watch(self) -> None:
        """Called while the pipeline runs: serve questions, notice an abort or a dead coordinator."""
        with self._seen():
            self._look_around()

    def _look_around(self) -> None:
        while (received := self._mailbox.receive(0)) is not None:
            try:
                self._handle_while_running(*received)
            except (UpdateAbortedError, Halted):
                raise
            except Exception as error:
                self._refuse(*received, error)
        self._mailbox.check_alive([self._coordinator])
        if self._stopping.is_set():
            raise UpdateAbortedError(f"the {self._kind} was closed")

    def _handle_while_running(self, sender: str, message: Message) -> None:
        if self._answers(sender, message):
            return
        match message:
            case m.Invite():
                self._consider(sender, message)
            case m.Abort() if self._may_say(sender, message):
                raise UpdateAbortedError(message.reason)
            case m.Halt() if self._may_say(sender, message):
                raise Halted(message.reason)
            case m.Order() if not isinstance(message, m.Abort | m.Halt):
                self._mailbox.refuse(f"{self.label} is in the middle of something", message.update)

    def _check_coordinator(self) -> None:
        try:
            self._mailbox.check_alive([self._coordinator] if self._coordinator else [])
            if self._follower is not None and time.monotonic() > self._follower.deadline:
                raise PeerLostError(f"the update by {self._coordinator} did not end before its deadline")
            if self._follower is not None:
                self._follower.check_patience()
        except (PeerLostError, TransferTimeout) as lost:
            if self._follower is not None:
                self._lose(self._follower, lost)
            self._part_from_coordinator()

    # -- the end of an update -----------------------------------------------------------------------------------

    def _lose(self, follower: Follower | None, reason: BaseException) -> None:
        """The coordinator does not lead this update any more."""
        self._end(follower, reason)

    def _end(self, follower: Follower | None, reason: BaseException) -> None:
        """The update failed, here or elsewhere."""
        assert follower is not None
        self._follower, self._ending, self._must_end_because = None, follower, reason_of(reason)
        registry.look_again()
        self._table.abort(reason)
        tainted = self._given_up(follower, reason)
        self._left = follower.update
        self._leave()
        self._must_end_because, self._ending = "", None
        self._tell_coordinator(m.Aborted(follower.update, tainted, reason_of(reason)))

    def _tell_coordinator(self, message: m.Reply) -> None:
        """Say it to whoever leads the update, if this member has not parted from it."""
        if not self._coordinator:
            return
        if isinstance(message, m.Failed | m.Aborted):
            self._mailbox.send(self._coordinator, message)
        else:
            self._mailbox.by_courier.answer(self._coordinator, message)

    def _leave(self) -> None:
        """The update is over; what was said in it counts no more."""
        self._follower, self._target_version = None, ""
        about.update = ""
        self._challenges.renew()

    def _part_from_coordinator(self) -> None:
        if self._coordinator:
            self._table.part()
            self._mailbox.forget(self._coordinator)
            self._coordinator = ""
