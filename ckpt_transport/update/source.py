"""A source rank above 0 joins the coordinator of an update and follows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from hmac import compare_digest

from ckpt_transport.control import Mailbox, Message
from ckpt_transport.control.messages import Refused
from ckpt_transport.errors import JoinError, TransferTimeout, UpdateAbortedError
from ckpt_transport.memory import Backing
from ckpt_transport.update import messages as m
from ckpt_transport.update.follower import Follower
from ckpt_transport.update.participant import Halted, Participant
from ckpt_transport.update.plan_cache import PlanCache
from ckpt_transport.update.routes import RouteTable

TICK_SECONDS = 0.2


def follow(
    mailbox: Mailbox,
    table: RouteTable,
    plans: PlanCache,
    extents: Sequence[Backing],
    coordinator: str,
    join: m.Join,
    timeout: float,
) -> None:
    """Take part in the update that the coordinator leads, until it is committed.

    Raises:
        UpdateAbortedError: the coordinator gave up; it knows which sinks are concerned.
        PeerLostError: the coordinator is gone.
        TransferTimeout: nothing was committed within ``timeout`` seconds.
    """
    while mailbox.receive(0) is not None:
        pass
    deadline = time.monotonic() + timeout
    participant = Participant(mailbox, table, plans, extents, None, deadline)
    follower: Follower | None = None

    def accepts(sender: str, message: Message) -> bool:
        """Whether it is an order to be followed; what else there is is refused, unless it is a refusal itself."""
        nonlocal follower
        if isinstance(message, Refused):
            if sender == coordinator and message.about == join.update:
                raise JoinError(f"{coordinator} refuses: {message.reason}")
            return False
        objection = f"only {coordinator} leads this source"
        if sender == coordinator and isinstance(message, m.Order):
            if follower is None and compare_digest(message.nonce.encode(), join.nonce.encode()):
                mailbox.watch(coordinator)
                follower = Follower(message.update, join.nonce, participant, None, timeout)
            objection = "it is not said to this source" if follower is None else follower.objection(message)
        if objection:
            mailbox.refuse(objection, getattr(message, "update", ""))
        return not objection

    def watch() -> None:
        while (received := mailbox.receive(0)) is not None:
            if not accepts(*received):
                continue
            match received[1]:
                case m.Abort(reason=reason):
                    raise UpdateAbortedError(reason)
                case m.Halt(reason=reason):
                    raise Halted(reason)
        mailbox.check_alive([coordinator])

    mailbox.send(coordinator, join)
    try:
        while True:
            if follower is not None:
                mailbox.check_alive([coordinator])
            if time.monotonic() > deadline:
                raise TransferTimeout(f"the update led by {coordinator} was not committed within {timeout:g} s")
            received = mailbox.receive(TICK_SECONDS)
            if received is None or not accepts(*received):
                continue
            order = received[1]
            assert follower is not None
            assert isinstance(order, m.Order)
            if isinstance(order, m.Abort):
                raise UpdateAbortedError(order.reason)
            answer = follower.answer(order, watch)
            if answer is not None:
                mailbox.send(coordinator, answer)
            if isinstance(order, m.Commit):
                return
    except BaseException as error:
        update, rank = ("", -1) if follower is None else (follower.update, follower.rank)
        if not isinstance(error, UpdateAbortedError):
            mailbox.send(coordinator, m.Failed(update, rank, type(error).__name__, str(error)))
        table.abort(error)
        mailbox.send(coordinator, m.Aborted(update, rank, tainted=False, reason=str(error)))
        raise
