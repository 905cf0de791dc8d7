"""The membership of an update is its ranks as the coordinator talks to them."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar, cast

import msgspec

from ckpt_transport import errors
from ckpt_transport.config import Config
from ckpt_transport.control import Mailbox
from ckpt_transport.control.couriers import in_groups
from ckpt_transport.control.messages import Refused
from ckpt_transport.errors import (
    CkptTransportError,
    ControlError,
    MessageError,
    PeerLostError,
    TransferError,
    TransferTimeout,
    UpdateError,
)
from ckpt_transport.planning import Role
from ckpt_transport.reasons import with_name
from ckpt_transport.update import messages as m
from ckpt_transport.update.protocol import exchange_of
from ckpt_transport.update.turn import Turn

TICK_SECONDS = 0.05
LOOK_SECONDS = 0.05
"""How often members are looked for that are gone: each look costs as much as there are members."""

HURRY_SECONDS = 1.0
"""For so long those who live are still heard when whoever waits is interrupted again."""

Answer = TypeVar("Answer", bound=m.ToCoordinator)


class Membership:
    """Talks to the ranks of an update; rank 0 is the coordinator's own.

    Args:
        update: its name.
        mailbox: the coordinator's.
        config: deadlines.
        deadline: seconds of the monotonic clock after which the update has failed.
        turn: of the update.

    Attributes:
        addresses, joins: of each rank.
        nonces: what is said to each carries, by address: the one it was invited at, and the one it sends from.
        left: who has left, by address, and why.
        aborted: who has given the update up, told to or by itself, by address.
        committed: who has committed, by address.
        dismissed: who has left the update when it was told to, by address.
        stopped: who has ended the round that is halted, by address.
        round: how many plans were made before this one.
        trace: what orders carry, so that members know which trace they are part of.
        reached: addresses of all who have heard of the update.
        looked: told whenever the coordinator's thread looks around.
    """

    def __init__(self, update: str, mailbox: Mailbox, config: Config, deadline: float, turn: Turn) -> None:
        self.update, self.turn = update, turn
        self._mailbox, self._config, self._deadline = mailbox, config, deadline
        self.addresses: list[str] = []
        self.joins: list[m.Join] = []
        self.nonces: dict[str, str] = {}
        self.left: dict[str, str] = {}
        self.aborted: dict[str, m.Aborted] = {}
        self.committed: dict[str, m.Committed] = {}
        self.dismissed: dict[str, m.Dismissed] = {}
        self.stopped: dict[str, m.Stopped] = {}
        self.round, self.trace = 0, ""
        self.reached: Sequence[str] = ()
        self.looked: Callable[[], None] = _nobody_asks
        self._ranks: dict[str, int] = {}
        self._answers: dict[type[m.ToCoordinator], dict[int, m.ToCoordinator]] = {}
        """What members have answered and nobody has waited for yet, by rank."""
        self._sound_at = time.monotonic()
        self._look_at = 0.0
        self._hear_until = math.inf

    @property
    def others(self) -> range:
        return range(1, len(self.addresses))

    @property
    def held_first(self) -> list[int]:
        """The others, sinks before sources: requests are held until these hear."""
        return sorted(self.others, key=lambda rank: self.joins[rank].role is not Role.SINK)

    @property
    def fellows(self) -> tuple[str, ...]:
        """The addresses of the other source ranks, which come by themselves."""
        joins = [(rank, self.joins[rank]) for rank in self.others]
        return tuple(self.addresses[rank] for rank, join in joins if join.role is Role.SOURCE and not join.invited)

    def label(self, rank: int) -> str:
        """What people call it, and where it is."""
        return f"rank {rank} ({self.joins[rank].label} at {self.addresses[rank]})"

    def admit(self, address: str, join: m.Join) -> None:
        """Let somebody take part, who gets the next rank; an interrupt half way leaves nobody who has only a part."""
        self.joins.append(join)
        self.addresses.append(address)
        self._ranks[address] = len(self.addresses) - 1

    def keep(self, ranks: Sequence[int]) -> None:
        """Go on with these, who become ranks 0, 1, ...; they have no routes and no plan any more."""
        addresses = [self.addresses[rank] for rank in ranks]
        joins = [msgspec.structs.replace(self.joins[rank], routes=(), plan="") for rank in ranks]
        self._answers.clear()
        self.stopped.clear()
        self._ranks = {}
        self.addresses = addresses
        self.joins = joins
        self._ranks = {address: rank for rank, address in enumerate(addresses)}
        self.round += 1

    def go_on_until(self, deadline: float) -> None:
        """The update has time again, after it has waited on purpose."""
        self._deadline = deadline

    # -- talking ------------------------------------------------------------------------------------------------

    def find_couriers(self) -> None:
        """Have sinks hand on to others of their host what all are asked, where there are many of them.

        In whatever order they were named, the same ones do so as in the last update.
        """
        by_host: defaultdict[str, list[str]] = defaultdict(list)
        for join, address in zip(self.joins, self.addresses, strict=True):
            if join.role is Role.SINK:
                by_host[join.host].append(address)
        self._mailbox.by_courier.plan(in_groups([sorted(by_host[host]) for host in sorted(by_host)]))

    def use_no_couriers(self) -> None:
        """Talk to each straight."""
        self._mailbox.by_courier.plan(())

    def addressed(self, address: str, message: m.FromCoordinator) -> m.FromCoordinator:
        """What is said to the member at ``address``: with its nonce."""
        return msgspec.structs.replace(message, nonce=self.nonces.get(address, ""), trace=self.trace)

    def order(self, address: str, message: m.FromCoordinator) -> None:
        """Say it to the member at ``address``."""
        self._mailbox.send(address, self.addressed(address, message))

    def send(self, rank: int, message: m.FromCoordinator) -> None:
        self.order(self.addresses[rank], message)

    def hurry(self) -> None:
        """Nobody waits much longer in :meth:`hear_each`; from any thread."""
        self._hear_until = min(self._hear_until, time.monotonic() + HURRY_SECONDS)

    def tell(self, message: m.FromCoordinator, ranks: Iterable[int]) -> None:
        for rank in ranks:
            self.send(rank, message)

    def tell_aborted(self, abort: m.Abort) -> None:
        """Say it to all who have heard of the update."""
        for address in dict.fromkeys(tuple(self.reached)):
            with suppress(CkptTransportError):  # whoever cannot be reached has not joined
                self.order(address, abort)

    @property
    def overdue(self) -> str:
        """Why the update should have ended; empty while it may go on, or cannot be taken back. From any thread."""
        over = self.turn.decided or self.turn.ended or time.monotonic() <= self._deadline
        return "" if over else self._late

    def give_up(self, reason: str) -> str:
        """Tell everybody that the update is over, while the coordinator's thread is stuck; says so. From any thread."""
        if not self.turn.give_up(reason):
            return "sinks may have been told to serve the version"
        self.tell_aborted(m.Abort(self.update, reason))
        return "sinks were told that it is over"

    @property
    def _late(self) -> str:
        return f"the update did not end within {self._config.update_timeout:g} s (update_timeout)"

    def tell_surely(self, message: m.FromCoordinator, ranks: Iterable[int]) -> BaseException | None:
        """Say it to all that can be reached, also when an interrupt comes meanwhile, which is returned."""
        ranks = tuple(ranks)
        interrupt: BaseException | None = None
        while True:
            try:
                for rank in ranks:
                    with suppress(ControlError):
                        self.send(rank, message)
            except Exception:
                raise
            except BaseException as error:
                interrupt = error
            else:
                return interrupt

    def hear_each(
        self,
        is_done: Callable[[int], bool],
        ranks: Iterable[int],
        timeout: float,
        interrupt: BaseException | None = None,
    ) -> BaseException | None:
        """Wait until each of the ranks that live is done, for ``timeout`` seconds at most; nobody's report is raised.

        An interrupt is kept and returned, so that it can say what became of the update; a second one is raised.
        """
        waiting = list(ranks)
        deadline = time.monotonic() + timeout
        while True:
            late = time.monotonic() > min(deadline, self._hear_until)
            try:
                self.hear(0 if late else TICK_SECONDS)
                while waiting and is_done(waiting[-1]):
                    waiting.pop()
                if late or not any(not is_done(rank) and self.alive(rank) for rank in reversed(waiting)):
                    return interrupt
            except Exception:
                raise
            except BaseException as error:
                if interrupt is not None:
                    raise
                interrupt = error

    def ask(self, order: m.Order[Answer], ranks: Iterable[int]) -> Callable[[], dict[int, Answer]]:
        """Give ``order`` to each of ``ranks``; the result waits for their answers, as :meth:`ask_each` says."""
        return self.ask_each(dict.fromkeys(ranks, order))

    def ask_each(self, orders: Mapping[int, m.Order[Answer]]) -> Callable[[], dict[int, Answer]]:
        """Give each rank its order, all with answers of one type.

        Returns: a function that waits until each of the ranks has answered, and returns the answers by rank. It raises
            PeerLostError or TransferTimeout, which name who did not answer, and what a member reported instead.
        """
        addresses = {rank: self.addresses[rank] for rank in orders}
        encode = self._mailbox.encode
        self._mailbox.by_courier.ask_each(
            (address, encode(self.addressed(address, orders[rank]))) for rank, address in addresses.items()
        )
        kinds = {exchange_of(order).answer for order in orders.values()}
        return lambda: self._gather(next(iter(kinds)), orders) if kinds else {}

    def _gather(self, kind: type[Answer], ranks: Iterable[int]) -> dict[int, Answer]:
        asked = tuple(ranks)
        waiting = list(asked)
        answers = cast(dict[int, Answer], self._answers.setdefault(kind, {}))
        while True:
            self.watch()
            while waiting and waiting[-1] in answers:
                waiting.pop()
            if not waiting:
                return {rank: answers.pop(rank) for rank in asked}
            self.take_in(TICK_SECONDS)

    def watch(self) -> None:
        """Raise when the update has failed elsewhere, is late or superseded, or this process stood still too long."""
        self.turn.check()
        self._check_own_silence()
        self.take_in(0)
        if time.monotonic() > self._look_at:
            self._look_for_the_lost()
            self._look_at = time.monotonic() + LOOK_SECONDS
        if time.monotonic() > self._deadline:
            raise TransferTimeout(self._late)

    def _look_for_the_lost(self) -> None:
        with suppress(PeerLostError):
            self._mailbox.check_alive(self.addresses)
            return
        for rank in self.others:
            if not self.alive(rank):
                silence = f"is gone: no sign of life for {self._config.heartbeat_timeout:g} s"
                self.left.setdefault(self.addresses[rank], f"{self.joins[rank].label} {silence}")
                raise PeerLostError(f"{self.label(rank)} {silence}")

    def _check_own_silence(self) -> None:
        """Members give up a coordinator that they hear nothing of: it must not go on as if they had not."""
        silence = self._mailbox.silence(self._sound_at)
        if silence:
            self._sound_at = time.monotonic()
            raise PeerLostError(
                f"this process has stood still for {silence:.1f} s, longer than heartbeat_timeout "
                f"({self._config.heartbeat_timeout:g} s), so that others take it for dead"
            )

    def hear(self, timeout: float) -> None:
        """File what has arrived, after waiting up to ``timeout`` seconds for the first; nobody's report is raised."""
        while True:
            try:
                return self.take_in(timeout)
            except CkptTransportError:
                timeout = 0

    def take_in(self, timeout: float) -> None:
        """File what has arrived, after waiting up to ``timeout`` seconds for the first.

        Raises:
            CkptTransportError: what somebody reported, or that a member has given up.
        """
        self.looked()
        received = self._mailbox.receive(timeout)
        while received is not None:
            sender, message = received
            match message:
                case m.Failed(update=self.update):
                    self.left.setdefault(sender, f"{self.who(sender)}: {message.error}: {message.reason}")
                    raise self.rebuilt(message, sender)
                case m.Join(update=""):
                    if message.nonce != self.nonces.get(sender):  # whoever has joined may say it twice
                        self._mailbox.keep_for_later()
                case Refused(about=self.update, reason=reason) if sender in self._ranks:
                    raise MessageError(f"{self.who(sender)} refuses what it was told: {reason}")
                case m.Committed(update=self.update):
                    self.committed[sender] = message
                case m.Aborted(update=name) if name == self.update or (not name and self._has_said(sender, message)):
                    self.aborted[sender] = message
                    if sender in self._ranks:
                        gave_up = f"{self.who(sender)} has given up: {message.reason or 'it does not say why'}"
                        self.left.setdefault(sender, gave_up)
                        raise UpdateError(gave_up)
                case m.Stopped():
                    if (message.update, message.round) == (self.update, self.round) and sender in self._ranks:
                        self.stopped[sender] = message
                        if message.reason:
                            raise TransferError(f"{self.who(sender)}: {message.reason}")
                case m.Reply(update=self.update):
                    if (rank := self._ranks.get(sender)) is not None:
                        self._answers.setdefault(type(message), {})[rank] = message
                        if isinstance(message, m.Dismissed):
                            self.dismissed[sender] = message
            received = self._mailbox.receive(0)

    def _has_said(self, sender: str, aborted: m.Aborted) -> bool:
        """Whether that comes from a member which does not know the name of the update, and not from a stranger."""
        return sender in self._ranks and bool(aborted.nonce) and aborted.nonce == self.nonces.get(sender)

    def alive(self, rank: int) -> bool:
        """Whether there was a sign of life within ``heartbeat_timeout``, of which this process has slept none."""
        try:
            self._mailbox.check_alive([self.addresses[rank]])
        except PeerLostError:
            return self._mailbox.awake_for() < self._config.heartbeat_timeout
        return True

    def has_said(self, kind: type[m.Reply], rank: int) -> bool:
        """Whether its answer of that type has come."""
        return rank in self._answers.get(kind, {})

    def has_ended(self, rank: int) -> bool:
        """Whether it has said how the update ended for it."""
        address = self.addresses[rank]
        return address in self.committed or address in self.aborted or address in self.dismissed

    def welcomes(self, ended: Mapping[str, m.Committed | m.Dismissed]) -> Iterator[tuple[str, str]]:
        """Where each of those was invited that have ended well, by address, and its welcome."""
        for address, join in zip(self.addresses, self.joins, strict=True):
            if address in ended:
                yield join.invited, ended[address].welcome

    def rebuilt(self, failed: m.Failed, sender: str) -> CkptTransportError:
        """The error a participant reported, of its own class where that is one of ours."""
        kind, reason = getattr(errors, failed.error, None), failed.reason
        if sender in self._ranks:  # its own errors begin with its label, too
            reason = reason.removeprefix(f"{self.joins[self._ranks[sender]].label}: ")
        if isinstance(kind, type) and issubclass(kind, CkptTransportError) and kind.__init__ is Exception.__init__:
            return kind(f"{self.who(sender)}: {reason or failed.error}")
        return UpdateError(f"{self.who(sender)}: {with_name(failed.error, failed.reason)}")

    def who(self, sender: str) -> str:
        """What people call the member at an address; the address itself of others."""
        return self.label(self._ranks[sender]) if sender in self._ranks else sender


def _nobody_asks() -> None:
    pass
