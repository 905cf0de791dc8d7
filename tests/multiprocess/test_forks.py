"""Children that a trainer or an engine forks: they harm nothing of their parent's, and are refused by name."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckpt_transport import Config, Holder, Joiner, ParameterServer
from ckpt_transport.errors import TaintedError, UsageError
from ckpt_transport_torch import attach
from tests.fleet import SinkSpec, fleet, weights
from tests.patience import DEADLINE, PATIENT

CONFIG = Config.load(**PATIENT)
context = multiprocessing.get_context("fork")


def in_a_child(act: Callable[[], object]) -> None:
    child = context.Process(target=act)
    child.start()
    child.join(DEADLINE / 3)
    hangs = child.is_alive()
    if hangs:
        child.kill()
        child.join()
    assert not hangs, "the child hangs"
    assert child.exitcode == 0


def refused(owner: str, *calls: Callable[[], object]) -> None:
    for call in calls:
        with pytest.raises(UsageError, match=f"this {owner} was made in process {os.getppid()}"):
            call()


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_given_children_of_a_trainer_then_what_they_do_does_not_reach_its_updates(transport: str) -> None:
    """Given a server with open routes, when children exit, collect garbage, close or call, then updates go on."""
    with fleet(SinkSpec(), SinkSpec()) as sinks:
        command = [sys.executable, "-m", "tests.multiprocess.forking", transport, *[sink.address for sink in sinks]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 0, done.stderr
        assert all(sink.state().holds(weights(2)) for sink in sinks)


def test_given_a_child_of_an_engine_then_it_is_no_sink() -> None:
    """Given an attached module, when a child is told to serve or close, then only its parent is a sink, as before."""
    module = torch.nn.Linear(4, 4)
    with attach(module, version="v1", config=CONFIG) as served, ParameterServer(CONFIG) as server:
        in_a_child(lambda: refused("sink", served._sink.start, served._sink.serve))
        in_a_child(served.close)
        server.register("v2", tensors={name: torch.ones_like(tensor) for name, tensor in module.state_dict().items()})
        server.update("v2", [served.address])
        assert served.version == "v2"
        assert bool((module.weight == 1).all())


def test_given_a_child_of_a_holder_or_a_joiner_then_it_is_refused(tmp_path: Path) -> None:
    """Given a holder and a joiner, when a child uses and closes them, then the parent's go on."""
    with fleet(SinkSpec()) as (sink,), Holder("v2", tensors=weights(2), config=CONFIG).start() as holder:
        holder.address_file.save(tmp_path / "metas", CONFIG)
        joiner = Joiner([tmp_path / "metas"], CONFIG)

        def child() -> None:
            refused("holder", holder.start, holder.serve)
            refused("Joiner", lambda: joiner.update("v2", [sink.address]))
            holder.close()

        in_a_child(child)
        joiner.update("v2", [sink.address])
        assert sink.state().holds(weights(2))


def test_given_a_child_of_an_engine_then_it_computes_with_its_copy_unless_that_may_be_a_mix() -> None:
    """Given an engine that forks between updates and during one, then no child waits for an update to end."""
    module = torch.nn.Linear(4, 4)
    inputs = torch.zeros(1, 4)
    with attach(module, version="v1", config=CONFIG) as served:
        in_a_child(lambda: module(inputs))
        with served.gate.forward_pass():
            in_a_child(lambda: module(inputs))
        served.gate.advance(served.gate.hold(), timeout=1.0)

        def refused_to_compute() -> None:
            with pytest.raises(TaintedError, match=f"process {os.getpid()} was forked while an update was applied"):
                module(inputs)

        in_a_child(refused_to_compute)
        served.gate.resume()
        module(inputs)
