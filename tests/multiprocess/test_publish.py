"""What a training loop calls at each step."""

from __future__ import annotations

import gc
import uuid
from typing import Any

import pytest
import torch

from ckpt_transport import Config, Mapping, ParameterServer, rules
from ckpt_transport.errors import CheckpointError, ConfigError, StoreError, UpdateAbortedError
from ckpt_transport.planning import explain
from tests.fleet import SinkSpec, fleet, model, weights
from tests.patience import PATIENT

CONFIG = Config.load(**PATIENT)


def test_given_steps_of_training_then_each_is_served_and_the_server_holds_none_of_them() -> None:
    """Given weights that are changed in place after each step, then sinks serve each step as it was published."""
    trained = {name: tensor.clone() for name, tensor in weights(1).items()}
    run = uuid.uuid4().hex
    with fleet(SinkSpec(), SinkSpec()) as sinks, ParameterServer(CONFIG) as server:
        for seed in (2, 3, 4):
            for name, tensor in weights(seed).items():
                trained[name].copy_(tensor)
            report = server.publish(f"{run}-{seed}", trained, [sink.address for sink in sinks])
            assert report is not None
            assert next(iter(report.phases)) == "register"
            assert list(report.phases)[-1] == "unregister"
            assert report.seconds == sum(report.phases.values())
            with pytest.raises(StoreError):
                server.unregister(f"{run}-{seed}")
        assert all(sink.state().holds(weights(4)) for sink in sinks)
        gc.collect()
        assert not [each for each in gc.get_objects() if type(each) in (set, dict) and f"{run}-3" in each]


def test_given_a_step_that_no_sink_takes_then_the_next_may_have_its_name() -> None:
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        with pytest.raises(UpdateAbortedError):
            server.publish("step", {"unknown": torch.zeros(3)}, [sink.address])
        server.publish("step", weights(2), [sink.address])
        assert sink.state().holds(weights(2))


def test_given_a_step_that_cannot_be_lent_when_sinks_are_invited_then_they_take_the_next_one() -> None:
    mapping = Mapping.of(rules.Cast("F16"))
    too_large = {name: torch.full_like(tensor, 1e30) for name, tensor in weights(2).items()}
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        server.publish("first", weights(1), [sink.address])
        with pytest.raises(CheckpointError, match="overflow in F16"):
            server.publish("step", too_large, [sink.address], mapping=mapping)
        assert sink.state().holds(weights(1))
        server.publish("step", weights(3), [sink.address])
        assert sink.state().holds(weights(3))


def test_given_a_step_then_its_report_says_how_it_was_taken_in_and_why() -> None:
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        report = server.publish("step", weights(2), [sink.address])
        assert report is not None
        assert report.intake.startswith("lent, because")
        server.register("other", tensors=weights(3))
        report = server.update("other", [sink.address])
        assert report is not None
        assert report.intake == ""


def test_given_a_step_that_is_no_version_then_it_is_refused_as_register_refuses_it() -> None:
    with ParameterServer(CONFIG) as server:
        for wrong in ({"a": 3}, {"a": torch.eye(2).to_sparse()}, [torch.zeros(3)]):
            with pytest.raises(CheckpointError):
                server.publish("step", wrong, ["ipc:///tmp/nobody"])  # type: ignore[arg-type]


def test_given_arguments_of_a_wrong_kind_then_each_is_named_with_what_would_do() -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        (
            r"sinks are to be a list, also where there is one: give \['ipc:///tmp/nobody'\]",
            {"sinks": "ipc:///tmp/nobody"},
        ),
        (r"sinks are to be a list, also where there is one: give \[3\]", {"sinks": 3}),
        ("a version cannot be called 3; give a name", {"version": 3}),
        (r"which has 100,000 characters; give a name of at most 1,000", {"version": "x" * 100_000}),
        (r"'cast' is no mapping: give Mapping.of\(...\)", {"mapping": "cast"}),
        (r"no mapping: give Mapping.of\(...\)", {"mapping": [rules.Cast("BF16")]}),
    ]
    with ParameterServer(CONFIG) as server:
        for message, arguments in wrong:
            given: dict[str, Any] = {"version": "step", "tensors": weights(2), "sinks": ["ipc:///tmp/nobody"]}
            with pytest.raises((ConfigError, StoreError), match=message):
                server.publish(**{**given, **arguments})
        with pytest.raises(ConfigError, match="'cast' is no mapping"):
            server.register("step", tensors=weights(2), mapping="cast")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_given_a_tensor_that_has_become_a_nested_one_then_the_step_is_refused_by_name_and_the_next_one_comes() -> None:
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        server.publish("step-1", weights(1), [sink.address])
        name = next(iter(weights(2)))
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.strided)
        with pytest.raises(CheckpointError, match=f"'{name}' is nested"):
            server.publish("step-2", weights(2) | {name: nested}, [sink.address])
        server.publish("step-3", weights(3), [sink.address])
        assert sink.state().holds(weights(3))


def test_given_weights_that_are_gathered_one_by_one_then_a_step_is_served_without_a_second_copy_of_them() -> None:
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        for seed in (2, 3):
            gathered = ((name, tensor.clone()) for name, tensor in weights(seed).items())
            server.publish(f"step-{seed}", gathered, [sink.address])
            assert sink.state().holds(weights(seed))


@pytest.mark.parametrize("how", ["publish", "lend"])
def test_given_weights_under_the_trainers_names_and_types_then_engines_get_theirs(how: str) -> None:
    """The trainer has a wrapped FP32 model with one fused tensor, and the engine a plain one in BF16."""
    mapping = Mapping.of(
        rules.Strip("module."),
        rules.Unwrap("_orig_mod"),
        rules.Drop(r".*inv_freq"),
        rules.Split("fused", ("0.weight", "1.weight")),
        rules.Cast("BF16"),
    )
    with fleet(SinkSpec(make=in_bfloat16), SinkSpec(make=in_bfloat16)) as sinks, ParameterServer(CONFIG) as server:
        for seed in (2, 3):
            trained = weights(seed)
            given = {f"module._orig_mod.{name}": tensor for name, tensor in trained.items()}
            given["module.rope.inv_freq"] = torch.zeros(3)
            given["module.fused"] = torch.cat(
                [given.pop("module._orig_mod.0.weight"), given.pop("module._orig_mod.1.weight")]
            )
            addresses = [sink.address for sink in sinks]
            if how == "publish":
                report = server.publish(f"step-{seed}", given, addresses, mapping=mapping)
            else:
                server.lend(f"step-{seed}", given, mapping=mapping)
                report = server.update(f"step-{seed}", addresses)
                server.unregister(f"step-{seed}")
            assert report is not None
            assert "BF16 from F32" in explain(report.plan)
            expected = {name: tensor.to(torch.bfloat16) for name, tensor in trained.items()}
            assert all(sink.state().holds(expected) for sink in sinks)


def test_given_a_mapping_to_be_found_out_then_sinks_are_asked_and_get_what_they_expect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with fleet(SinkSpec(make=in_bfloat16), SinkSpec(make=in_bfloat16)) as sinks, ParameterServer(CONFIG) as server:
        given = {f"module.{name}": tensor for name, tensor in weights(2).items()}
        with caplog.at_level("INFO", "ckpt_transport"):
            report = server.publish("step-2", given, [sink.address for sink in sinks], mapping="auto")
        assert "strip module.; cast BF16 .*" in caplog.text
        assert report is not None
        assert report.mappings == ("strip module.; cast BF16 .*",)
        assert "mapping   strip module.; cast BF16 .*\n" in explain(report.plan)
        expected = {name: tensor.to(torch.bfloat16) for name, tensor in weights(2).items()}
        assert all(sink.state().holds(expected) for sink in sinks)


def in_bfloat16(seed: int, **shape: Any) -> torch.nn.Module:
    return model(seed, **shape).to(torch.bfloat16)
