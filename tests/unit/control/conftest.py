"""Mailboxes, and a stranger."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from ckpt_transport.control import Mailbox
from tests.unit.control.notes import PATIENCE, Note


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with Mailbox(types=[Note]) as made:
        yield made


@pytest.fixture
def peer() -> Iterator[Mailbox]:
    with Mailbox(types=[Note]) as made:
        yield made


@pytest.fixture
def stranger() -> Iterator[zmq.Socket[bytes]]:
    """Another program's socket."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    dealer.rcvtimeo = int(PATIENCE * 1000)
    yield dealer
    context.destroy(0)
