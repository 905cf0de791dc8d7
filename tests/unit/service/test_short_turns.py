"""Given an engine whose threads hold the interpreter, then a member waits less for it while it follows short orders."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from ckpt_transport import Config, LoadedBucket, ParameterServer, Sink, UpdateAbortedError
from ckpt_transport.service.short_turns import SHORT_SECONDS, ShortTurns
from ckpt_transport_torch.engine import TorchEngine
from tests.patience import PATIENT

USUAL, THEIRS, SHORTER = 0.005, 0.002, 0.00025


@pytest.fixture(autouse=True)
def usual_turns() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(USUAL)
    yield
    sys.setswitchinterval(before)


def turns() -> float:
    """How long they are, in seconds."""
    return round(sys.getswitchinterval(), 6)


class Watches(TorchEngine):
    """Notes how long turns are in the steps of an update. May refuse to be loaded."""

    def __init__(self, module: torch.nn.Module, *, refuses: bool = False) -> None:
        self.noted: dict[str, float] = {}
        self._refuses = refuses
        super().__init__(module)

    def confirm(self) -> None:
        self.noted["confirm"] = turns()
        super().confirm()
        if self._refuses:
            raise RuntimeError("not now")

    def landing(self, pieces: LoadedBucket) -> None:
        return None

    def load(self, pieces: LoadedBucket) -> None:
        self.noted["load"] = turns()
        super().load(pieces)

    def certify(self) -> None:
        self.noted["certify"] = turns()
        super().certify()


def test_given_an_update_then_turns_are_short_but_for_the_copies_and_as_before_afterwards() -> None:
    module = torch.nn.Linear(4, 4)
    engine = Watches(module)
    config = Config.load(transport="shm", commit="in_place", **PATIENT)
    with closing(Sink(engine, config=config)) as sink, ParameterServer(config) as server:
        server.lend("new", {name: torch.ones_like(each) for name, each in module.state_dict().items()})
        server.update("new", [sink.start().address])
    assert engine.noted == {"confirm": SHORT_SECONDS, "load": USUAL, "certify": SHORT_SECONDS}
    assert turns() == USUAL


def test_given_an_update_that_fails_then_turns_are_as_before() -> None:
    module = torch.nn.Linear(4, 4)
    engine = Watches(module, refuses=True)
    config = Config.load(transport="shm", commit="in_place", **PATIENT)
    with closing(Sink(engine, config=config)) as sink, ParameterServer(config) as server:
        server.lend("new", {name: torch.ones_like(each) for name, each in module.state_dict().items()})
        with pytest.raises(UpdateAbortedError, match="not now"):
            server.update("new", [sink.start().address])
    assert engine.noted == {"confirm": SHORT_SECONDS}
    assert turns() == USUAL


def test_given_two_members_then_turns_are_short_until_neither_wants_them() -> None:
    short = ShortTurns()
    short.want("one", short=True)
    short.want("other", short=True)
    short.want("one", short=False)
    assert turns() == SHORT_SECONDS
    short.want("other", short=False)
    assert turns() == USUAL


def test_given_a_program_that_sets_turns_itself_then_they_stay_so() -> None:
    short = ShortTurns()
    short.want("one", short=True)
    sys.setswitchinterval(THEIRS)
    short.want("one", short=False)
    assert turns() == THEIRS
    sys.setswitchinterval(SHORTER)
    short.want("one", short=True)
    assert turns() == SHORTER


def test_given_a_child_of_a_member_then_its_turns_are_as_before() -> None:
    short = ShortTurns()
    short.want("one", short=True)
    child = os.fork()
    if not child:
        short.end()
        os._exit(0 if turns() == USUAL else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    short.want("one", short=False)
