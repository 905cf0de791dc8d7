"""Messages of the tests of mailboxes, and how they wait for one."""

from __future__ import annotations

import time
from collections.abc import Callable

from ckpt_transport.control import Mailbox, Message

PATIENCE = 120.0


class Note(Message, frozen=True):
    text: str


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline


def next_note(mailbox: Mailbox) -> tuple[str, Message]:
    received = mailbox.receive(PATIENCE)
    assert received is not None
    return received
