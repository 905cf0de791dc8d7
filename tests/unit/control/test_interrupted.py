"""An interrupt comes while a mailbox sends: what it says next arrives whole."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from ckpt_transport.control import Mailbox
from tests.stuck import interrupted_when
from tests.support.interrupting import Interrupter
from tests.unit.control.notes import PATIENCE, Note, next_note, until


def drained_until(mailbox: Mailbox, last: Note) -> None:
    """Receive what has come, up to that note."""
    while (received := mailbox.receive(PATIENCE)) is not None:
        if received[1] == last:
            return
    raise AssertionError(f"{last} has not arrived")


def test_given_an_interrupt_at_any_step_of_sending_then_what_is_sent_next_arrives(mailbox: Mailbox) -> None:
    """Given two peers, when sending to the first is interrupted, then both get the next note."""
    with Mailbox(types=[Note]) as first, Mailbox(types=[Note]) as second:
        for peer in (first, second):
            mailbox.send(peer.address, Note("hello"))
            next_note(peer)
        interrupter = Interrupter()
        interrupter.run(lambda: mailbox.send(first.address, Note("whole")), 0)
        steps = interrupter.steps
        for at in range(1, steps):
            with suppress(KeyboardInterrupt):  # a call may make fewer steps than the one that was counted
                interrupter.run(lambda: mailbox.send(first.address, Note("torn")), at)
            for peer in (second, first):
                mailbox.send(peer.address, Note(f"after {at}"))
            for peer in (second, first):
                drained_until(peer, Note(f"after {at}"))


def test_given_an_interrupt_at_any_step_of_answering_then_the_next_answer_arrives(mailbox: Mailbox) -> None:
    with Mailbox(types=[Note]) as asker:

        def asked() -> None:
            asker.send(mailbox.address, Note("asks"))
            next_note(mailbox)

        interrupter = Interrupter()
        asked()
        interrupter.run(lambda: mailbox.answer(Note("whole")), 0)
        for at in range(1, interrupter.steps):
            asked()
            with suppress(KeyboardInterrupt):  # a call may make fewer steps than the one that was counted
                interrupter.run(lambda: mailbox.answer(Note("torn")), at)
            asked()
            mailbox.answer(Note(f"after {at}"))
            drained_until(asker, Note(f"after {at}"))


def test_given_a_heart_that_begins_late_when_its_mailbox_was_interrupted_and_closed_then_it_never_beats(
    peer: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine lets a thread begin when whoever has started it was interrupted, and is gone."""
    begins, may_begin = threading.Event(), threading.Event()
    begin = vars(threading.Thread)["_bootstrap"]

    def begin_late(thread: threading.Thread) -> None:
        if thread.name == "ckpt-transport-heart":
            begins.set()
            may_begin.wait(PATIENCE)
        begin(thread)

    failures: list[object] = []
    monkeypatch.setattr(threading.Thread, "_bootstrap", begin_late)
    monkeypatch.setattr(threading, "excepthook", failures.append)
    mailbox = Mailbox()
    with pytest.raises(KeyboardInterrupt), interrupted_when(begins.is_set):
        mailbox.watch(peer.address)
    mailbox.close()
    may_begin.set()
    heart = mailbox._heart._thread
    assert heart is not None
    until(lambda: heart.ident is not None and not heart.is_alive())
    assert failures == []
