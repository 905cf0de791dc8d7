"""This launcher is for transports that live inside one process: its ranks are threads."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from typing import Any

from ckpt_transport.control import Mailbox
from ckpt_transport.testing.context import Body, HangError, RankContext, RankOutcome
from ckpt_transport.testing.processes import HEARTBEAT, SILENCE


def launch_in_threads(
    body: Body, world_size: int, /, *args: Any, deadline: float, silence: float = SILENCE
) -> list[RankOutcome]:
    """Like :func:`~ckpt_transport.testing.processes.launch`, with a thread for every rank.

    A thread cannot be killed: one that hangs is reported with its stack and left behind.
    """
    end = time.monotonic() + deadline
    outcomes: dict[int, RankOutcome] = {}
    mailboxes = [Mailbox(interval=HEARTBEAT, timeout=silence) for _ in range(world_size)]
    addresses = {rank: mailbox.address for rank, mailbox in enumerate(mailboxes)}

    def run(rank: int) -> None:
        context = RankContext(rank, world_size, mailboxes[rank], addresses)
        outcomes[rank] = RankOutcome.of(rank, lambda: body(context, *args))

    threads = [
        threading.Thread(target=run, args=(rank,), name=f"rank-{rank}", daemon=True) for rank in range(world_size)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))
    frames = sys._current_frames()
    stacks = {
        rank: "".join(traceback.format_stack(frames[thread.ident])) if thread.ident in frames else ""
        for rank, thread in enumerate(threads)
        if thread.is_alive()
    }
    for rank, mailbox in enumerate(mailboxes):
        if rank not in stacks:
            mailbox.close()
    if stacks:
        raise HangError(deadline, list(outcomes.values()), stacks)
    return [outcomes[rank] for rank in range(world_size)]
