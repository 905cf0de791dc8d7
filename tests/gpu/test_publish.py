"""A step that lies on a GPU is published from there."""

from __future__ import annotations

import torch

from ckpt_transport import Config, ParameterServer
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
