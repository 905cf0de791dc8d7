"""A step that lies on a GPU is published from there."""

from __future__ import annotations

import torch

from ckpt_transport import Config, ParameterServer
from tests.fleet import SinkSpec, fleet, weights
from tests.leftovers import left_behind
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


def test_given_steps_on_a_gpu_and_deltas_then_they_are_compared_there_and_only_what_differs_is_sent() -> None:
    config = Config.load(**PATIENT, delta="on", commit="auto")
    already = len(left_behind())
    with fleet(SinkSpec()) as (sink,), ParameterServer(config) as server:
        there = {name: tensor.cuda() for name, tensor in weights(2).items()}
        for step in range(4):
            for tensor in there.values():
                tensor.view(-1)[step % tensor.numel()] += 1.0
            report = server.publish(f"step-{step}", there, [sink.address])
            assert report is not None
            assert report.delta is not None
            assert report.delta.base == (f"step-{step - 1}" if step else ""), report.delta.reason
            assert "on the same device" in report.intake
            assert sink.state().holds({name: tensor.cpu() for name, tensor in there.items()})
        assert len(left_behind()) - already <= 1, "only what carries the difference is in shared memory"
