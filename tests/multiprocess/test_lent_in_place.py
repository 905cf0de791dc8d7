"""A trainer on CPUs lends its weights: sinks of its host read them where they lie, to where they serve them."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection

import pytest
import torch

from ckpt_transport import Config, ParameterServer, Report
from tests.fleet import SinkProcess, SinkSpec, by_name, context, fleet, model, weights
from tests.patience import PATIENT
from tests.support.forbidden_calls import forbid_reading_processes

CONFIG = Config.load(transport="shm", **PATIENT)
ODD = ((1,), (2, 1), (3, 5), (257,), (70_001,), (0,), (1100, 2100))
TYPES = (torch.bfloat16, torch.uint8, torch.float32, torch.float64)


def odd_model(seed: int) -> torch.nn.Module:
    """Tensors of one byte to nine megabytes, of every size of element."""
    module = model(seed, layers=1)
    for name, tensor in odd_tensors(seed).items():
        module.register_buffer(name, tensor)
    return module


def odd_weights(seed: int) -> dict[str, torch.Tensor]:
    return {**weights(seed, layers=1), **odd_tensors(seed)}


def odd_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{number}_{kind}".replace(".", "_"): torch.randint(0, 120, shape, generator=generator).to(kind)
        for number, shape in enumerate(ODD)
        for kind in TYPES
    }


def passes_through_slots(report: Report) -> list[str]:
    """Why, as the plan says it; nothing where tensors were read where they lay."""
    made = report.plan
    assert made is not None
    notes = [note for note in made.notes if note.startswith("the tensors of source 0 pass through slots: ")]
    assert all(map(made.lies_apart, made.buckets)) == (not notes)
    assert bool(made.rings) == bool(notes)
    return notes


def publish(
    server: ParameterServer, version: str, tensors: Mapping[str, torch.Tensor], sinks: Sequence[SinkProcess]
) -> Report:
    report = server.publish(version, tensors, [sink.address for sink in sinks])
    assert report is not None
    return report


@pytest.mark.parametrize("commit", ["in_place", "staged"])
def test_given_tensors_of_any_size_then_each_step_is_read_where_it_lies_bit_by_bit(commit: str) -> None:
    """From the second step on they lie in huge pages, as far as they fill some."""
    trained = odd_weights(2)
    config = Config.load(transport="shm", commit=commit, **PATIENT)
    with fleet(SinkSpec(make=odd_model), SinkSpec(make=odd_model)) as sinks, ParameterServer(config) as server:
        for step in (3, 4, 5):
            for name, tensor in odd_weights(step).items():
                trained[name].copy_(tensor)
            assert passes_through_slots(publish(server, f"step-{step}", trained, sinks)) == []
            for sink in sinks:
                state = sink.state()
                assert (state.version, state.tainted) == (f"step-{step}", "")
                assert state.holds(trained)


def test_given_tensors_that_move_between_two_steps_then_they_are_found_again() -> None:
    with fleet(SinkSpec()) as sinks, ParameterServer(CONFIG) as server:
        for step in (2, 3):
            assert passes_through_slots(publish(server, f"step-{step}", weights(step), sinks)) == []
            assert sinks[0].state().holds(weights(step))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (
            SinkSpec(prepare=forbid_reading_processes),
            "a filter of system calls or a security module may forbid process_vm_readv",
        ),
        (SinkSpec(loader=by_name), "its engine must be given its tensors"),
    ],
    ids=["forbidden", "loader"],
)
def test_given_one_sink_that_cannot_read_them_there_then_they_pass_through_slots_and_it_is_said_why(
    spec: SinkSpec, why: str
) -> None:
    with fleet(SinkSpec(), spec) as sinks, ParameterServer(CONFIG) as server:
        (note,) = passes_through_slots(publish(server, "step-2", weights(2), sinks))
        assert why in note
        assert all(sink.state().holds(weights(2)) for sink in sinks)


def test_given_an_update_by_p2p_then_they_pass_through_slots_to_be_compared_before_they_are_served() -> None:
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        server.lend("step-2", weights(2))
        report = server.update_p2p("step-2", [sink.address])
        assert report is not None
        (note,) = passes_through_slots(report)
        assert "an update by P2P compares what comes before an engine is given it" in note
        assert sink.state().holds(weights(2))


def run_source(sink: str, pipe: Connection) -> None:
    with ParameterServer(CONFIG) as server:
        server.publish("step-2", weights(2), [sink])
        pipe.send("published")
        pipe.recv()


def test_given_a_trainer_that_was_killed_then_another_one_is_read_and_not_taken_for_it() -> None:
    with fleet(SinkSpec()) as sinks:
        ours, theirs = context.Pipe()
        process = context.Process(target=run_source, args=(sinks[0].address, theirs), daemon=True)
        process.start()
        assert ours.recv() == "published"
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert sinks[0].state().holds(weights(2))
        with ParameterServer(CONFIG) as server:
            assert passes_through_slots(publish(server, "step-3", weights(3), sinks)) == []
        assert sinks[0].state().holds(weights(3))
