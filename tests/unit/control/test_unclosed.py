"""Given a mailbox that nobody has closed, when it is collected, then nobody waits and nothing of it is left."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from pathlib import Path

from ckpt_transport.control import Mailbox
from ckpt_transport.control.messages import Heartbeat
from ckpt_transport.control.unclosed import close_when_collected

CLOSES = "ckpt-transport-close"


def wait_for_closes() -> None:
    for thread in threading.enumerate():
        if thread.name == CLOSES:
            thread.join()


def test_given_mailboxes_that_talk_and_watch_when_they_are_collected_then_their_sockets_are_closed() -> None:
    one, other = Mailbox(), Mailbox()
    one.send(other.address, Heartbeat())
    one.watch(other.address)
    files = [Path(each.address.removeprefix("ipc://")) for each in (one, other)]
    threads = [weakref.ref(each._heart._thread) for each in (one,) if each._heart._thread is not None]
    assert all(file.exists() for file in files)
    assert threads
    del one, other
    gc.collect()
    wait_for_closes()
    assert not any(file.exists() for file in files)
    assert not any(each is not None and each.is_alive() for each in (thread() for thread in threads))


def test_given_a_mailbox_that_was_closed_when_it_is_collected_then_nothing_is_done() -> None:
    mailbox = Mailbox()
    mailbox.close()
    assert not mailbox._unclosed.alive


def test_given_a_forked_process_when_it_collects_what_its_parent_made_then_it_closes_nothing() -> None:
    class Owner:
        pass

    closed: list[int] = []
    owner = Owner()
    close_when_collected(owner, lambda: closed.append(os.getpid()))
    child = os.fork()
    if not child:
        del owner
        gc.collect()
        wait_for_closes()
        os._exit(len(closed))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    del owner
    gc.collect()
    wait_for_closes()
    assert closed == [os.getpid()]
