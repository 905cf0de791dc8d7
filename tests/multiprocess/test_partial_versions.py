"""Only what a step has changed moves, onto sinks that serve exactly what it was changed from."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport import Config, ParameterServer, ask_version
from ckpt_transport.errors import StoreError, UpdateAbortedError, UsageError
from tests.fleet import SinkSpec, by_name, fleet, weights
from tests.patience import DEADLINE, PATIENT

CONFIG = Config.load(**PATIENT)
CHANGED = ("1.weight", "4.bias")


def changed(seed: int, base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The base, with some tensors of another seed."""
    return {**base, **{name: weights(seed)[name] for name in CHANGED}}


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_given_names_of_what_has_changed_then_only_that_moves_and_all_is_served_as_the_new_version(
    transport: str,
) -> None:
    spec = SinkSpec(settings={"transport": transport})
    config = Config.load(**PATIENT, transport=transport)
    with fleet(spec, spec) as sinks, ParameterServer(config) as server:
        addresses = [sink.address for sink in sinks]
        server.publish("step-1", weights(2), addresses)
        expected = weights(2)
        for seed in (3, 4):
            expected = changed(seed, expected)
            server.register(f"step-{seed}", tensors=expected)
            report = server.update(f"step-{seed}", addresses, only=CHANGED)
            assert report is not None
            assert set(report.plan.manifest.specs) == set(CHANGED)
            assert report.plan.manifest.nbytes == sum(expected[name].nbytes for name in CHANGED)
            for sink in sinks:
                assert (sink.state().version, sink.state().tainted) == (f"step-{seed}", "")
                assert sink.state().holds(expected)


def test_given_a_sink_with_a_loader_then_it_takes_a_part_of_a_version_and_then_all_of_one() -> None:
    with fleet(SinkSpec(loader=by_name)) as (sink,), ParameterServer(CONFIG) as server:
        server.publish("step-1", weights(2), [sink.address])
        expected = changed(3, weights(2))
        part = {name: expected[name] for name in CHANGED}
        server.publish("step-2", part, [sink.address], base="step-1")
        assert (sink.state().version, sink.state().tainted) == ("step-2", "")
        assert sink.state().holds(expected)
        after_a_part = ask_version(sink.address, timeout=DEADLINE, digest=True).digest
        server.publish("step-2-whole", expected, [sink.address])
        assert ask_version(sink.address, timeout=DEADLINE, digest=True).digest == after_a_part
        server.publish("step-3", weights(4), [sink.address])
        assert sink.state().holds(weights(4))
        assert ask_version(sink.address, timeout=DEADLINE, digest=True).digest != after_a_part


def test_given_a_sink_that_serves_something_else_then_it_refuses_by_name_with_the_cure_and_nothing_moves() -> None:
    with fleet(SinkSpec(), SinkSpec()) as (one, other), ParameterServer(CONFIG) as server:
        both = [one.address, other.address]
        server.publish("step-1", weights(2), both)
        server.publish("step-2", weights(3), [other.address])
        part = {name: weights(4)[name] for name in CHANGED}
        with pytest.raises(
            UpdateAbortedError,
            match=r"'step-3' brings only what differs from 'step-1', and .* serves 'step-2'; bring 'step-1' first, or",
        ):
            server.publish("step-3", part, both, base="step-1")
        assert (one.state().version, other.state().version) == ("step-1", "step-2")
        assert one.state().holds(weights(2))
        assert other.state().holds(weights(3))


def test_given_a_base_of_the_same_name_from_somebody_else_then_it_is_told_apart() -> None:
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server, ParameterServer(CONFIG) as another:
        server.publish("step-1", weights(2), [sink.address])
        another.publish("step-1", weights(3), [sink.address])
        part = {name: weights(4)[name] for name in CHANGED}
        with pytest.raises(UpdateAbortedError, match="serves another 'step-1', which another update has brought"):
            server.publish("step-2", part, [sink.address], base="step-1")
        another.publish("step-2", part, [sink.address], base="step-1")
        assert sink.state().holds(changed(4, weights(3)))


def test_given_a_part_that_is_none_then_it_is_named_before_anybody_is_asked() -> None:
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        server.register("step-1", tensors=weights(2))
        with pytest.raises(UsageError, match="say base=, the version that they serve"):
            server.update("step-1", [sink.address], only=CHANGED)
        with pytest.raises(StoreError, match="version 'step-1' has no tensor 'unknown'"):
            server.update("step-1", [sink.address], only=["unknown"], base="v1")
        with pytest.raises(StoreError, match=r"give \['0.weight'\]"):
            server.update("step-1", [sink.address], only="0.weight", base="v1")
        with pytest.raises(StoreError, match="name at least one"):
            server.update("step-1", [sink.address], only=[], base="v1")
        with pytest.raises(UpdateAbortedError, match=r"has tensors that .* does not: unknown"):
            server.publish("step-2", {"unknown": torch.zeros(3)}, [sink.address], base="v1")
        server.update("step-1", [sink.address], only=CHANGED, base="v1")
        assert sink.state().holds({**weights(1), **{name: weights(2)[name] for name in CHANGED}})
