"""A source rank above 0 in one update: it joins the coordinator and follows."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ckpt_transport.control import Mailbox
from ckpt_transport.errors import TransferTimeout, UpdateAbortedError
from ckpt_transport.memory import Backing
from ckpt_transport.session import messages as m
from ckpt_transport.session.participant import Follower, Halted, Participant
from ckpt_transport.session.plans import Plans
from ckpt_transport.session.routes import RouteTable

TICK_SECONDS = 0.2


def follow(
    mailbox: Mailbox,
    table: RouteTable,
    plans: Plans,
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

    def watch() -> None:
        while (received := mailbox.receive(0)) is not None:
            if received[0] != coordinator:
                continue
            if isinstance(received[1], m.Abort):
                raise UpdateAbortedError(received[1].reason)
            if isinstance(received[1], m.Halt):
                raise Halted(received[1].reason)
        mailbox.check_alive([coordinator])

    mailbox.send(coordinator, join)
    update, rank = "", -1
    try:
        while True:
            if follower is not None:
                mailbox.check_alive([coordinator])
            if time.monotonic() > deadline:
                raise TransferTimeout(f"the update led by {coordinator} was not committed within {timeout:g} s")
            received = mailbox.receive(TICK_SECONDS)
            if received is None or received[0] != coordinator:
                continue
            message = received[1]
            if isinstance(message, m.Abort):
                update = message.update
                raise UpdateAbortedError(message.reason)
            if isinstance(message, m.Propose | m.Halt):
                update = message.update
                if follower is None:
                    mailbox.watch(coordinator)
                    follower = Follower(update, participant, None, timeout)
            if follower is not None:
                answer = follower.answer(message, watch)
                rank = follower.rank
                if answer is not None:
                    mailbox.send(coordinator, answer)
                if isinstance(message, m.Commit):
                    return
    except BaseException as error:
        if not isinstance(error, UpdateAbortedError):
            mailbox.send(coordinator, m.Failed(update, rank, type(error).__name__, str(error)))
        table.abort(error)
        mailbox.send(coordinator, m.Aborted(update, rank, tainted=False, reason=str(error)))
        raise
