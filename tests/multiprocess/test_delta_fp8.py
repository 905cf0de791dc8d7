"""BF16 weights become FP8 on their way, and what has changed in that is sent: codes and scales."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport.deltas import MadeBytes
from ckpt_transport.errors import CheckpointError, UpdateAbortedError
from ckpt_transport_fp8 import quantized
from tests.deltas import base_of
from tests.fleet import SinkSpec, fleet
from tests.fp8_models import by_reference, fp8_model, source_weights, target
from tests.leftovers import left_behind
from tests.patience import PATIENT

DELTAS: dict[str, Any] = {**PATIENT, "delta": "on", "commit": "auto"}
BESIDE = Config.load(**DELTAS, delta_base="beside")


def stepped(weights: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """These weights after a step: some have moved by one number of BF16, one is now the largest of its block."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: tensor.clone() for name, tensor in weights.items()}
    for tensor in found.values():
        moved = torch.rand(tensor.shape, generator=generator) < 0.02
        tensor.view(torch.int16)[moved] += 1
    found["0.weight"][seed, seed] = 8.0 + seed
    return found


@pytest.mark.parametrize(
    ("transport", "base"), [("shm", "host"), ("gloo", "host"), ("shm", "beside"), ("gloo", "beside")]
)
def test_given_fp8_engines_fed_from_bf16_then_deltas_are_of_codes_and_scales_and_bit_exact(
    transport: str, base: str
) -> None:
    config = Config.load(**DELTAS, transport=transport, delta_base=base)
    sinks = SinkSpec(make=fp8_model), SinkSpec(make=fp8_model)
    with fleet(*sinks) as running, ParameterServer(config) as server:
        addresses, to = [sink.address for sink in running], target()
        versions = [source_weights(2)]
        first = server.publish("step-0", quantized(versions[0], to), addresses)
        assert first is not None
        assert first.plan.manifest.conversions
        for number in (1, 2, 3):
            versions.append(stepped(versions[-1], number))
            report = server.publish(f"step-{number}", quantized(versions[-1], to), addresses)
            assert report is not None
            assert report.delta is not None
            assert report.delta.base == f"step-{number - 1}", report.delta.reason
            assert ("where it is computed" in report.intake) == (base == "beside")
            old, new = (by_reference(weights) for weights in versions[-2:])
            differ = sum(int((old[name].view(torch.uint8) != new[name].view(torch.uint8)).sum()) for name in old)
            assert report.delta.changed <= differ, "an element of several bytes counts once"
            assert not torch.equal(old["0.weight_scale_inv"], new["0.weight_scale_inv"])
            assert report.delta.sent_nbytes < 0.25 * report.delta.version_nbytes
            assert all(sink.state().holds(new) for sink in running)
        for expected in (versions[2], versions[3]):
            server.rollback(addresses)
            assert all(sink.state().holds(by_reference(expected)) for sink in running)
        server.register("step-4", tensors=quantized(stepped(versions[3], 4), to))
        server.update("step-4", addresses)
        assert all(sink.state().holds(by_reference(stepped(versions[3], 4))) for sink in running)


def test_given_no_deltas_then_what_is_computed_is_lent_as_before() -> None:
    with fleet(SinkSpec(make=fp8_model)) as (sink,), ParameterServer(Config.load(**PATIENT)) as server:
        report = server.publish("step-1", quantized(source_weights(3), target()), [sink.address])
        assert report is not None
        assert "computed when they are sent" in report.intake
        assert sink.state().holds(by_reference(source_weights(3)))


def test_given_fp8_that_is_compared_where_it_is_computed_then_only_what_carries_the_difference_is_copied() -> None:
    already = len(left_behind())
    with fleet(SinkSpec(make=fp8_model)) as (sink,), ParameterServer(BESIDE) as server:
        trained, to = source_weights(2), target()
        for number in range(4):
            trained["0.weight"][number, number] = 8.0 + number
            report = server.publish(f"step-{number}", quantized(trained, to), [sink.address])
            assert base_of(report) == (f"step-{number - 1}" if number else "")
            assert sink.state().holds(by_reference(trained))
            assert len(left_behind()) - already <= 2, "slots, and what carries the difference"


def test_given_a_step_that_is_given_up_then_the_next_one_is_compared_with_what_sinks_serve() -> None:
    def give_up() -> None:
        raise RuntimeError("the trainer has other plans")

    with fleet(SinkSpec(make=fp8_model)) as (sink,), ParameterServer(BESIDE) as server:
        to, versions = target(), [source_weights(2)]
        versions += [stepped(versions[0], 1)]
        versions += [stepped(versions[0], 2)]
        server.publish("step-0", quantized(versions[0], to), [sink.address])
        with pytest.raises(UpdateAbortedError, match="other plans"):
            server.publish("step-1", quantized(versions[1], to), [sink.address], before_hold=give_up)
        assert sink.state().holds(by_reference(versions[0]))
        for number in (2, 3):
            server.publish(f"step-{number}", quantized(versions[2], to), [sink.address])
            assert sink.state().holds(by_reference(versions[2]))
        report = server.publish("step-4", quantized(versions[1], to), [sink.address])
        assert base_of(report) == "step-3"
        assert sink.state().holds(by_reference(versions[1]))


def test_given_weights_that_are_trained_while_their_fp8_is_brought_then_nothing_wrong_is_served_or_kept() -> None:
    with fleet(SinkSpec(make=fp8_model)) as (sink,), ParameterServer(BESIDE) as server:
        trained, to = source_weights(2), target()
        server.publish("step-0", quantized(trained, to), [sink.address])
        served = by_reference(trained)
        loan = quantized(trained, to)
        trained["0.weight"][1, 1] = 9.0
        with pytest.raises(CheckpointError, match=r"'0\.weight' was changed"):
            server.publish("step-1", loan, [sink.address])
        assert sink.state().holds(served)
        server.publish("step-2", quantized(trained, to), [sink.address])
        assert sink.state().holds(by_reference(trained))


def test_given_no_memory_to_compute_fp8_in_then_everything_comes_in_the_same_call_and_deltas_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("the GPU is full")

    with fleet(SinkSpec(make=fp8_model)) as (sink,), ParameterServer(BESIDE) as server:
        trained, to = source_weights(2), target()
        server.publish("step-0", quantized(trained, to), [sink.address])
        trained["0.weight"][1, 1] = 9.0
        with monkeypatch.context() as patch:
            patch.setattr(MadeBytes, "parts", full)
            assert base_of(server.publish("step-1", quantized(trained, to), [sink.address])) == ""
        assert sink.state().holds(by_reference(trained))
        trained["1.weight"][1, 1] = 9.0
        assert base_of(server.publish("step-2", quantized(trained, to), [sink.address])) == "step-1"
        assert sink.state().holds(by_reference(trained))
