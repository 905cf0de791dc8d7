"""What a training loop calls at each step."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import CheckpointError, StoreError, UpdateAbortedError
from tests.fleet import PATIENT, SinkSpec, fleet, weights

CONFIG = Config.load(**PATIENT)


def test_given_steps_of_training_then_each_is_served_and_the_server_holds_none_of_them() -> None:
    """Given weights that are changed in place after each step, then sinks serve each step as it was published."""
    trained = {name: tensor.clone() for name, tensor in weights(1).items()}
    with fleet(SinkSpec(), SinkSpec()) as sinks, ParameterServer(CONFIG) as server:
        for seed in (2, 3, 4):
            for name, tensor in weights(seed).items():
                trained[name].copy_(tensor)
            report = server.publish(f"step-{seed}", trained, [sink.address for sink in sinks])
            assert report is not None
            assert next(iter(report.phases)) == "register"
            assert list(report.phases)[-1] == "unregister"
            assert report.seconds == sum(report.phases.values())
            with pytest.raises(StoreError):
                server.unregister(f"step-{seed}")
        assert all(sink.state().holds(weights(4)) for sink in sinks)


def test_given_a_step_that_no_sink_takes_then_the_next_may_have_its_name() -> None:
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        with pytest.raises(UpdateAbortedError):
            server.publish("step", {"unknown": torch.zeros(3)}, [sink.address])
        server.publish("step", weights(2), [sink.address])
        assert sink.state().holds(weights(2))


def test_given_a_step_then_its_report_says_how_it_was_taken_in_and_why() -> None:
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        report = server.publish("step", weights(2), [sink.address])
        assert report is not None
        assert report.intake.startswith("registered, in about")
        server.register("other", tensors=weights(3))
        report = server.update("other", [sink.address])
        assert report is not None
        assert report.intake == ""


def test_given_a_step_that_is_no_version_then_it_is_refused_as_register_refuses_it() -> None:
    with ParameterServer(CONFIG) as server:
        for wrong in ({"a": 3}, {"a": torch.eye(2).to_sparse()}, [torch.zeros(3)]):
            with pytest.raises(CheckpointError):
                server.publish("step", wrong, ["ipc:///tmp/nobody"])  # type: ignore[arg-type]


def test_given_weights_that_are_gathered_one_by_one_then_a_step_is_served_without_a_second_copy_of_them() -> None:
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        for seed in (2, 3):
            gathered = ((name, tensor.clone()) for name, tensor in weights(seed).items())
            server.publish(f"step-{seed}", gathered, [sink.address])
            assert sink.state().holds(weights(seed))
