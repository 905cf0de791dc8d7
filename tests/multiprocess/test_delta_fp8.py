"""BF16 weights become FP8 on their way, and what has changed in that is sent: codes and scales."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport_fp8 import quantized
from tests.fleet import SinkSpec, fleet
from tests.fp8_models import by_reference, fp8_model, source_weights, target
from tests.patience import PATIENT

DELTAS: dict[str, Any] = {**PATIENT, "delta": "on", "commit": "auto"}


def stepped(weights: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """These weights after a step: some have moved by one number of BF16, one is now the largest of its block."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: tensor.clone() for name, tensor in weights.items()}
    for tensor in found.values():
        moved = torch.rand(tensor.shape, generator=generator) < 0.02
        tensor.view(torch.int16)[moved] += 1
    found["0.weight"][seed, seed] = 8.0 + seed
    return found


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_given_fp8_engines_fed_from_bf16_then_deltas_are_of_codes_and_scales_and_bit_exact(transport: str) -> None:
    sinks = SinkSpec(make=fp8_model), SinkSpec(make=fp8_model)
    with fleet(*sinks) as running, ParameterServer(Config.load(**DELTAS, transport=transport)) as server:
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
