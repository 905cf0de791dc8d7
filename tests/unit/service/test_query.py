"""Asking many sinks at the same time which version they serve."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import torch

from ckpt_transport import Config
from ckpt_transport.control import Mailbox
from ckpt_transport.control.addresses import new_ipc_address, private_directory
from ckpt_transport.errors import ConfigError, JoinError
from ckpt_transport.service import asking
from ckpt_transport.service import questions as q
from ckpt_transport.service.asking import Asking
from ckpt_transport.service.query import ask_versions
from ckpt_transport.update.mailbox import open_mailbox
from ckpt_transport_torch import Attachment, attach
from tests.support.interrupting import Interrupter

PATIENCE = 60.0


@pytest.fixture
def sinks() -> Iterator[list[Attachment]]:
    with ExitStack() as stack:
        yield [stack.enter_context(attach(torch.nn.Linear(2, 2), version=f"v{number}")) for number in range(5)]


def versions(answers: dict[str, q.ServedVersion | JoinError]) -> list[str]:
    return [answer.version if isinstance(answer, q.ServedVersion) else str(answer) for answer in answers.values()]


@pytest.mark.parametrize("at_once", [2, 256])
def test_given_more_sinks_than_are_asked_at_once_then_each_answers_in_the_order_asked_for(
    sinks: list[Attachment], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ASKED_AT_ONCE", at_once)
    answers = ask_versions([sink.address for sink in sinks], timeout=PATIENCE)
    assert versions(answers) == [f"v{number}" for number in range(5)]


def test_given_nobody_at_an_address_then_the_others_answer_and_that_one_is_named(sinks: list[Attachment]) -> None:
    nobody = new_ipc_address()
    timeout = 1.0
    while versions(answers := ask_versions([nobody, sinks[0].address, sinks[0].address], timeout=timeout))[1] != "v0":
        assert timeout < PATIENCE
        timeout *= 4
    assert list(answers) == [nobody, sinks[0].address]
    assert versions(answers)[0] == f"no answer from {nobody} within {timeout:g} s; is a sink running there?"


def test_given_sinks_that_were_asked_when_somebody_looks_now_and_then_then_answers_are_there_without_a_wait(
    sinks: list[Attachment],
) -> None:
    config = Config.load()
    questions = {sink.address: q.AskVersion() for sink in sinks}
    with open_mailbox("", q.COORDINATOR, config) as mailbox:
        asked = Asking(mailbox, questions, q.ServedVersion, PATIENCE)
        until = time.monotonic() + PATIENCE
        while len(asked.answers) < len(sinks) and time.monotonic() < until:
            asked.look()
        assert versions(asked.wait()) == [f"v{number}" for number in range(5)]


def open_pipes() -> int:
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing
            links.append(os.readlink(descriptor))
    return sum(link.startswith("pipe:") for link in links)


@pytest.fixture
def own_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where sockets of this test lie; its path is short enough for them."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        assert private_directory().is_relative_to(folder)
        yield private_directory()


def test_given_an_interrupt_at_any_step_of_a_question_then_nothing_stays_open(
    sinks: list[Attachment], own_directory: Path
) -> None:
    pipes, at, interrupter = open_pipes(), 0, Interrupter("ckpt_transport")
    while at == 0 or interrupter.place:
        at += 1
        with suppress(KeyboardInterrupt):
            interrupter.run(lambda: ask_versions([sinks[0].address], timeout=PATIENCE), at)
        assert open_pipes() == pipes, interrupter.place
        assert not list(own_directory.iterdir()), interrupter.place
    assert at > 50


def test_given_somebody_else_at_an_address_then_it_refuses(sinks: list[Attachment]) -> None:
    with Mailbox() as other:
        over = threading.Event()

        def listen() -> None:
            until = time.monotonic() + PATIENCE
            while not over.is_set() and time.monotonic() < until:
                other.receive(0.05)

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            answers = ask_versions([other.address, sinks[1].address], timeout=PATIENCE)
        finally:
            over.set()
            thread.join()
    assert versions(answers)[0].startswith(f"{other.address} refuses: ")
    assert versions(answers)[1] == "v1"


def test_given_what_is_no_address_then_that_is_an_error(sinks: list[Attachment]) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        ask_versions([sinks[0].address, "nowhere"])
