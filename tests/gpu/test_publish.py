"""A step that lies on a GPU is published from there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport.deltas import device_encoding
from ckpt_transport.memory import MemoryKind
from tests.fleet import SinkSpec, fleet, weights
from tests.patience import PATIENT

CONFIG = Config.load(**PATIENT)


def test_given_a_step_on_a_gpu_then_it_is_lent_and_one_that_is_strided_is_registered() -> None:
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        there = {name: tensor.cuda() for name, tensor in weights(2).items()}
        report = server.publish("step-2", there, [sink.address])
        assert report is not None
        assert report.intake.startswith("lent, because")
        assert sink.state().holds(weights(2))
        apart = {name: torch.stack([tensor.cuda()] * 2, -1)[..., 0] for name, tensor in weights(3).items()}
        report = server.publish("step-3", apart, [sink.address])
        assert report is not None
        assert "not contiguous" in report.intake
        assert sink.state().holds(weights(3))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_given_steps_on_a_gpu_and_deltas_then_what_differs_is_found_there_and_sent_from_there(device: str) -> None:
    config = Config.load(**PATIENT, delta="on", commit="auto")
    with fleet(SinkSpec({"device": device})) as (sink,), ParameterServer(config) as server:
        there = {name: tensor.cuda() for name, tensor in weights(2).items()}
        for step in range(4):
            for tensor in there.values():
                tensor.view(-1)[step % tensor.numel()] += 1.0
            report = server.publish(f"step-{step}", there, [sink.address])
            assert report is not None
            assert report.delta is not None
            assert report.delta.base == (f"step-{step - 1}" if step else ""), report.delta.reason
            assert "on the same device" in report.intake
            assert [extent.kind for extent in report.plan.manifest.extents] == [MemoryKind.EXPORTED]
            assert sink.state().holds({name: tensor.cpu() for name, tensor in there.items()})


def test_given_work_that_is_enqueued_before_what_differs_is_written_then_what_was_written_is_carried() -> None:
    config = Config.load(**PATIENT, delta="on", commit="auto")
    with fleet(SinkSpec()) as (sink,), ParameterServer(config) as server:
        there = {name: tensor.cuda() for name, tensor in weights(2).items()}
        server.publish("step-0", there, [sink.address])
        for step in (1, 2):
            for tensor in there.values():
                tensor.view(-1)[step] += 1.0
            torch.cuda.synchronize()
            with delayed(device_encoding, "_writing"):
                report = server.publish(f"step-{step}", there, [sink.address])
            assert report is not None
            assert report.delta is not None
            assert report.delta.base == f"step-{step - 1}", report.delta.reason
            assert sink.state().holds({name: tensor.cpu() for name, tensor in there.items()})


@contextmanager
def delayed(module: ModuleType, name: str) -> Iterator[None]:
    """Within the block the GPU waits before what that function launches."""
    inner = getattr(module, name)

    def late(*args: Any) -> Any:
        torch.cuda._sleep(1 << 28)  # type: ignore[no-untyped-call]
        return inner(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, late)
        yield
