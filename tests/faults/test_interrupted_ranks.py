"""One of two source ranks is interrupted at any step: sinks serve one version, and the next call of both succeeds."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Protocol

import pytest
import torch
from torch._C._distributed_c10d import TCPStore

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import CkptTransportError
from ckpt_transport.service import rendezvous
from tests.fleet import SinkSpec, context, fleet, stop, weights
from tests.leftovers import started_here
from tests.patience import DEADLINE, PATIENT
from tests.support.interrupting import Interrupter
from tests.support.outcomes import outcome_of

SHAPE = {"layers": 2, "width": 16}
POINTS = 12
"""Steps that are interrupted, of the thousands that an update makes: evenly, and again so many of its last ones."""
BEFORE = 14
"""An interrupt at one of so many first steps comes before a call has begun, of which the other rank hears nothing."""


def server_of(rank: int) -> ParameterServer:
    return ParameterServer(Config.load(**PATIENT, commit="staged"), rank=rank, world_size=2)


Tensors = Mapping[str, torch.Tensor]


def part_of(rank: int, seed: int) -> Tensors:
    return dict(list(weights(seed, **SHAPE).items())[rank::2])


Call = Callable[[], object]
Run = Callable[[Call], object]
"""Makes a call, which it may interrupt."""


def plainly(call: Call) -> object:
    return call()


def at_once(server: ParameterServer, version: str, part: Tensors, sink: str, run: Run = plainly) -> None:
    run(partial(server.publish, version, part, [sink]))


def in_two_calls(server: ParameterServer, version: str, part: Tensors, sink: str, run: Run = plainly) -> None:
    """Stage it, and commit it."""

    def stage_and_commit() -> None:
        with server.stage(version, [sink]) as job:
            job.commit()

    server.register(version, tensors=part)
    try:
        run(stage_and_commit)
    finally:
        server.unregister(version)


class Bring(Protocol):
    """One rank's part in bringing a version to a sink."""

    def __call__(self, server: ParameterServer, version: str, part: Tensors, sink: str, run: Run = ...) -> None: ...


def run_rank(environ: Mapping[str, str], rank: int, sink: str, bring: Bring, pipe: Connection) -> None:
    """A source rank that brings what it is told, and says what has become of that."""
    os.environ.update(environ)
    with server_of(rank) as server:
        while (told := pipe.recv()) != "stop":
            version, seed = told
            try:
                bring(server, version, part_of(rank, seed), sink)
                pipe.send("")
            except CkptTransportError as error:
                pipe.send(f"{type(error).__name__}: {error}")
    pipe.send("stopped")


@contextmanager
def other_rank(environ: Mapping[str, str], rank: int, sink: str, bring: Bring) -> Iterator[Connection]:
    pipe, theirs = context.Pipe()
    process = context.Process(target=run_rank, args=(environ, rank, sink, bring, theirs), daemon=True)
    process.start()
    started_here(process)
    theirs.close()
    try:
        yield pipe
    finally:
        stop(process, pipe)


def heard(pipe: Connection) -> str:
    assert pipe.poll(DEADLINE), "the other rank does not end its call"
    return str(pipe.recv())


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("bring", [at_once, in_two_calls])
def test_given_an_interrupt_of_one_rank_at_any_step_then_both_make_the_next_call(
    bring: Bring, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    environ = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rendezvous, "_numbers", itertools.count())  # both ranks are to make their first server
    with (
        fleet(SinkSpec(SHAPE)) as (sink,),
        other_rank(environ, 1 - rank, sink.address, bring) as other,
        server_of(rank) as us,
    ):
        interrupter = Interrupter("ckpt_transport")
        for seed in (2, 3):
            other.send((f"v{seed}", seed))
            bring(us, f"v{seed}", part_of(rank, seed), sink.address, partial(interrupter.run, at=0))
            assert heard(other) == ""
        steps, served = interrupter.steps, 3
        for at in (*range(BEFORE + 1, steps, steps // POINTS), *range(steps - POINTS, steps)):
            before, served = served, served + 1
            other.send((f"at {at}", served))
            said, held = "new", None
            try:
                bring(us, f"at {at}", part_of(rank, served), sink.address, partial(interrupter.run, at=at))
            except KeyboardInterrupt as interrupt:
                said, held = outcome_of(interrupt), interrupt
            if rank == 0:
                assert sink.state().holds(weights(served if said == "new" else before, **SHAPE)), interrupter.place
            served += 1
            other.send((f"after {at}", served))
            bring(us, f"after {at}", part_of(rank, served), sink.address)
            of_the_first, of_the_next = heard(other), heard(other)
            assert of_the_next == "", (interrupter.place, of_the_first)
            assert sink.state().holds(weights(served, **SHAPE)), interrupter.place
            del held
