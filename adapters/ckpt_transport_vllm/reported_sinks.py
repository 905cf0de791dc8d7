"""Hears from workers where their sinks are.

vLLM's server returns answers of workers for some calls only, and never those of other data-parallel replicas than the
first. So workers are asked to tell a mailbox of the asker.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ckpt_transport import Config
from ckpt_transport.spi import Here, any_port, open_mailbox

REPORT_SECONDS = 2.0
"""How long workers have to say where their sinks are before they are asked again."""
TICK_SECONDS = 0.1


def reported_sinks(ask: Callable[[str], object], workers: int, config: Config, is_near: bool) -> list[str]:
    """The addresses of sinks: of all workers, or of those that have said theirs within ``join_timeout``.

    Args:
        ask: has every worker tell where its sink is; is given the address of the mailbox that listens.
        workers: how many there are.
        config: deadlines, and where mailboxes listen.
        is_near: whether workers are on this host.
    """
    found: set[str] = set()
    deadline = time.monotonic() + config.join_timeout
    with open_mailbox("" if is_near else any_port(config.interface), (Here,), config) as mailbox:
        while len(found) < workers and time.monotonic() < deadline:
            ask(mailbox.address)
            until = time.monotonic() + REPORT_SECONDS
            while len(found) < workers and time.monotonic() < until:
                received = mailbox.receive(TICK_SECONDS)
                if received is not None and isinstance(received[1], Here):
                    found.add(received[1].address)
    return sorted(found)
