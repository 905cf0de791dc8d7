"""A trainer that changes what it has lent never has a mix of its steps served."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest
import torch

from ckpt_transport import Config, ParameterServer, Report
from ckpt_transport.errors import CheckpointError, TaintedError, UpdateAbortedError
from ckpt_transport_fp8 import quantized
from tests.fleet import SinkProcess, SinkSpec, fleet, model, weights
from tests.fp8_models import fp8_model, fp8_weights, source_weights, target
from tests.patience import PATIENT

CHANGED = "tensor '{}'.* was changed or freed by its owner since the version was lent"


@pytest.fixture
def sinks() -> Iterator[list[SinkProcess]]:
    with fleet(SinkSpec(), SinkSpec()) as running:
        yield running


def server(transport: str = "gloo") -> ParameterServer:
    return ParameterServer(Config.load(transport=transport, bucket_bytes="64KiB", ring_depth=2, **PATIENT))


def test_given_a_lent_tensor_that_changes_before_an_update_then_it_is_refused_and_nothing_has_changed(
    sinks: list[SinkProcess],
) -> None:
    trained = model(2)
    with server() as source:
        source.lend("v2", trained.state_dict())
        with torch.no_grad():
            trained.get_parameter("3.bias").add_(1)
        with pytest.raises(UpdateAbortedError, match=CHANGED.format(r"3\.bias")) as caught:
            source.update("v2", [sink.address for sink in sinks])
        assert isinstance(caught.value.__cause__, CheckpointError)
        for sink in sinks:
            state = sink.state()
            assert (state.version, state.tainted, state.served) == ("v1", "", "")
            assert state.holds(weights(1))


@pytest.mark.parametrize("update", [ParameterServer.update, ParameterServer.update_p2p])
def test_given_a_lent_tensor_that_changes_during_an_update_then_it_is_not_served_and_the_next_update_mends_it(
    sinks: list[SinkProcess], update: Callable[..., Report | None]
) -> None:
    addresses = [sink.address for sink in sinks]
    lent = weights(2)
    with server() as source:
        source.lend("v2", lent)
        with pytest.raises(TaintedError, match=CHANGED.format(r"0\.bias")):
            update(source, "v2", addresses, progress=lambda done, total: _step(lent))
        for sink in sinks:
            state = sink.wait_until(lambda state: bool(state.tainted))
            assert (state.version, state.served) == ("v1", "TaintedError")
        source.unregister("v2")
        source.lend("v3", lent)
        source.update("v3", addresses)
        for sink in sinks:
            state = sink.state()
            assert (state.version, state.tainted, state.served) == ("v3", "", "")
            assert state.holds(lent)


def _step(tensors: Mapping[str, torch.Tensor]) -> None:
    tensors["0.bias"].add_(1)


def test_given_weights_that_change_after_they_were_scaled_for_fp8_then_they_are_refused() -> None:
    trained = source_weights(2)
    name = next(known for known in trained if known.endswith("weight"))
    with fleet(SinkSpec(make=fp8_model)) as (sink,), server() as source:
        loan = quantized(trained, target())
        trained[name].mul_(2)
        source.lend("v2", loan)
        with pytest.raises(UpdateAbortedError, match=CHANGED.format(name)):
            source.update("v2", [sink.address])
        assert sink.state().holds(fp8_weights(1))
