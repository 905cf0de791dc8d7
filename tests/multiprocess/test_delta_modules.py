"""Of a module that is computed when it is loaded, all comes in each update, and of the others what has changed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer, Report, ask_version
from ckpt_transport.errors import UpdateAbortedError
from ckpt_transport_torch import attach
from tests import computed
from tests.deltas import sent_by_delta
from tests.fleet import SinkSpec, fleet
from tests.patience import PATIENT

SIZE = 2
ALONE = SinkSpec(make=computed.rank_of, loader=computed.loader)
RANKS = tuple(
    SinkSpec(make=computed.rank_of, model={"rank": rank, "size": SIZE}, loader=computed.loader, engine="engine")
    for rank in range(SIZE)
)
DELTAS: dict[str, Any] = {**PATIENT, "delta": "on", "commit": "auto"}
WHOLE = sum(tensor.nbytes for name, tensor in computed.weights_of(0).items() if name.startswith("gate."))
"""Bytes of the tensors that are always sent."""


def some_changed(tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """These tensors with other values at one place in fifty, at random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.where(torch.rand(tensor.shape, generator=generator) < 0.02, tensor * 1.5, tensor)
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_given_a_module_that_the_loader_computes_then_it_comes_whole_and_the_rest_by_what_has_changed(
    transport: str,
) -> None:
    with fleet(ALONE) as (sink,), ParameterServer(Config.load(**DELTAS, transport=transport)) as server:
        versions = [computed.weights_of(1)]
        server.publish("step-0", versions[0], [sink.address])
        for number in (1, 2, 3):
            versions.append(some_changed(versions[-1], number))
            report = sent_by_delta(server.publish(f"step-{number}", versions[-1], [sink.address]), f"step-{number - 1}")
            assert report.delta is not None
            assert dict(report.delta.whole) == {"gate": "the loader computes gate.weight of gate.weight"}
            assert "1 module takes its tensors whole: gate (the loader computes gate.weight" in str(report.delta)
            assert "gate (the loader computes gate.weight" in report.apply_summary[1]
            assert WHOLE < report.delta.sent_nbytes < 0.1 * report.delta.version_nbytes
            assert sink.state().holds(computed.served_of(versions[-1]))
        for expected in (versions[2], versions[3]):
            server.rollback([sink.address])
            assert sink.state().holds(computed.served_of(expected))


def test_given_no_step_that_is_kept_then_deltas_come_all_the_same() -> None:
    spec = SinkSpec(make=computed.rank_of, loader=computed.loader, settings={"keep_previous": 0})
    with fleet(spec) as (sink,), ParameterServer(Config.load(**DELTAS, transport="gloo")) as server:
        step = computed.weights_of(1)
        server.publish("step-0", step, [sink.address])
        for number in (1, 2):
            step = some_changed(step, number)
            sent_by_delta(server.publish(f"step-{number}", step, [sink.address]), f"step-{number - 1}")
            assert sink.state().holds(computed.served_of(step))


def test_given_several_steps_that_are_kept_then_each_is_taken_back_with_what_came_whole() -> None:
    spec = SinkSpec(make=computed.rank_of, loader=computed.loader, settings={"keep_previous": 3})
    with fleet(spec) as (sink,), ParameterServer(Config.load(**DELTAS, transport="gloo")) as server:
        versions = [computed.weights_of(1)]
        server.publish("step-0", versions[0], [sink.address])
        for number in (1, 2, 3):
            versions.append(some_changed(versions[-1], number))
            sent_by_delta(server.publish(f"step-{number}", versions[-1], [sink.address]), f"step-{number - 1}")
        for expected in (versions[2], versions[1], versions[0]):
            server.rollback([sink.address])
            assert sink.state().holds(computed.served_of(expected))


def test_given_ranks_with_rows_of_their_own_then_whole_tensors_go_to_all_and_changes_to_those_who_serve_them() -> None:
    with fleet(*RANKS) as sinks, ParameterServer(Config.load(**DELTAS, transport="gloo")) as server:
        addresses = [sink.address for sink in sinks]
        versions = [computed.weights_of(1)]
        server.publish("step-0", versions[0], addresses)
        for number in (1, 2):
            versions.append(some_changed(versions[-1], number))
            plan = sent_by_delta(server.publish(f"step-{number}", versions[-1], addresses), f"step-{number - 1}").plan
            changes = plan.manifest.nbytes - WHOLE
            for rank, sink in enumerate(sinks):
                assert sink.state().holds(computed.served_of(versions[-1], rank, SIZE))
            assert len(plan.topology.shares) == SIZE
            assert all(share.nbytes < WHOLE + 0.6 * changes for share in plan.topology.shares)
        server.rollback(addresses)
        assert all(sink.state().holds(computed.served_of(versions[1], rank, SIZE)) for rank, sink in enumerate(sinks))


def test_given_two_source_ranks_that_both_hold_the_module_then_it_is_loaded_once(tmp_path: Path) -> None:
    config = Config.load(**DELTAS, transport="gloo", coordinator=f"ipc://{tmp_path}/meet.sock")
    with fleet(ALONE) as (sink,), ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(2))
        servers = [stack.enter_context(ParameterServer(config, rank=rank, world_size=2)) for rank in range(2)]

        def publish(version: str, tensors: dict[str, torch.Tensor]) -> Report | None:
            def of(rank: int) -> dict[str, torch.Tensor]:
                return {name: tensor for name, tensor in tensors.items() if name != ("up", "down")[rank]}

            return next(
                threads.map(
                    lambda rank: servers[rank].publish(version, of(rank), [sink.address], replicated=True), range(2)
                )
            )

        old = computed.weights_of(1)
        publish("step-0", old)
        new = some_changed(old, 1)
        sent_by_delta(publish("step-1", new), "step-0")
        assert sink.state().holds(computed.served_of(new))


def test_given_modules_that_take_more_than_half_of_a_version_then_everything_is_sent_and_they_are_named() -> None:
    spec = SinkSpec(make=computed.rank_of, loader=computed.mostly_computed)
    with fleet(spec) as (sink,), ParameterServer(Config.load(**DELTAS, transport="gloo")) as server:
        old = computed.weights_of(1)
        server.publish("step-0", old, [sink.address])
        report = server.publish("step-1", some_changed(old, 1), [sink.address])
        assert report is not None
        assert report.delta is not None
        assert "would take more than 50% of all bytes" in report.delta.reason
        assert "2 modules take their tensors whole: up (the loader computes up of up), gate (" in report.delta.reason


def test_given_a_computed_module_that_is_transposed_then_it_comes_whole_beside_what_has_changed() -> None:
    with (
        fleet(SinkSpec(make=computed.transposed_rank_of, loader=computed.loader)) as (sink,),
        ParameterServer(Config.load(**DELTAS, transport="gloo")) as server,
    ):
        steps = [computed.weights_of(1)]
        server.publish("step-0", steps[0], [sink.address])
        for number in (1, 2):
            steps.append(some_changed(steps[-1], number))
            report = server.publish(f"step-{number}", steps[-1], [sink.address])
            assert report is not None
            assert report.delta is not None
            assert report.delta.base == f"step-{number - 1}", report.delta.reason
            assert list(report.delta.whole) == ["gate"]
            assert sink.state().holds(computed.served_of(steps[-1]))
        server.rollback([sink.address])
        assert sink.state().holds(computed.served_of(steps[1]))


def test_given_a_computed_module_with_others_values_in_its_memory_then_everything_is_sent_and_it_is_said_why() -> None:
    with (
        fleet(SinkSpec(make=computed.strided_rank_of, loader=computed.loader)) as (sink,),
        ParameterServer(Config.load(**DELTAS, transport="gloo")) as server,
    ):
        step = computed.weights_of(1)
        server.publish("step-0", step, [sink.address])
        for number in (1, 2):
            step = some_changed(step, number)
            report = server.publish(f"step-{number}", step, [sink.address])
            assert report is not None
            assert report.delta is not None
            assert "the memory of gate.weight holds other values" in report.delta.reason
            assert report.delta.reason.count(sink.label) == 1
            assert sink.state().holds(computed.served_of(step))


def test_given_somebody_who_writes_to_a_module_that_comes_whole_then_everything_is_sent_and_named_so() -> None:
    module = computed.rank_of(0)
    with (
        attach(module, loader=computed.loader(module), config=Config.load(**PATIENT)) as attachment,
        ParameterServer(Config.load(**DELTAS)) as server,
    ):
        to, step = [attachment.address], computed.weights_of(1)
        server.publish("step-0", step, to)
        for number in (1, 2):
            step = some_changed(step, number)
            sent_by_delta(server.publish(f"step-{number}", step, to), f"step-{number - 1}")
        assert ask_version(attachment.address).version == "step-2", "it has noted what it serves then"
        module.gate.weight.data[7, 9] += 1
        step = some_changed(step, 3)
        report = server.publish("step-3", step, to)
        assert report is not None
        assert report.delta is not None
        assert report.delta.base == ""
        assert "somebody else has written to it since it was committed" in report.delta.reason
        assert holds(module, step)
        step = some_changed(step, 4)
        sent_by_delta(server.publish("step-4", step, to), "step-3")
        assert holds(module, step)


def test_given_somebody_who_writes_to_a_module_that_came_whole_then_the_delta_is_not_taken_back() -> None:
    module = computed.rank_of(0)
    with (
        attach(module, loader=computed.loader(module), config=Config.load(**PATIENT)) as attachment,
        ParameterServer(Config.load(**DELTAS)) as server,
    ):
        to, step = [attachment.address], computed.weights_of(1)
        server.publish("step-0", step, to)
        step = some_changed(step, 1)
        sent_by_delta(server.publish("step-1", step, to), "step-0")
        assert ask_version(attachment.address).version == "step-1", "it has noted what it serves then"
        module.gate.scale.data[3] += 1
        with pytest.raises(UpdateAbortedError, match="somebody else has written to what is served"):
            server.rollback(to)
        assert attachment.version == "step-1"
        step = some_changed(step, 2)
        server.publish("step-2", step, to)
        assert holds(module, step)


def holds(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> bool:
    expected = computed.served_of(tensors)
    return all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())
