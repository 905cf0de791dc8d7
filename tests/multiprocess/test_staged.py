"""A staged update comes beside what is served: nothing is held while it comes, and it is everywhere or nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer, Report
from ckpt_transport.errors import TaintedError, UpdateAbortedError
from ckpt_transport.planning import explain
from ckpt_transport_torch import Loader, attach
from tests.fleet import SinkSpec, by_name, fleet, weights
from tests.injection import Fault
from tests.patience import PATIENT, SWIFT

SHAPE: dict[str, Any] = {"layers": 8, "width": 512}


def server_for(**settings: Any) -> ParameterServer:
    return ParameterServer(Config.load(**{**PATIENT, "commit": "staged", **settings}))


def updated(server: ParameterServer, seed: int, addresses: list[str]) -> Report:
    server.register(f"v{seed}", tensors=weights(seed, **SHAPE))
    report = server.update(f"v{seed}", addresses)
    assert report is not None
    return report


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_given_two_sinks_when_a_version_is_staged_then_both_serve_it_and_were_held_after_it_came(
    transport: str,
) -> None:
    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE)) as sinks, server_for(transport=transport) as server:
        for seed in (2, 3):
            report = updated(server, seed, [sink.address for sink in sinks])
            assert report.staged
            assert list(report.phases).index("run") < list(report.phases).index("hold")
            for sink in sinks:
                state = sink.state()
                assert (state.version, state.tainted, state.served) == (f"v{seed}", "", "")
                assert state.holds(weights(seed, **SHAPE))


@pytest.mark.parametrize("where", ["load", "finish", "hold", "advance", "confirm"])
def test_given_a_sink_that_fails_before_the_decision_then_all_serve_the_old_version_and_none_is_tainted(
    where: str,
) -> None:
    faulty = SinkSpec(SHAPE, fault=Fault(where, act="raise"))
    with fleet(SinkSpec(SHAPE), faulty) as sinks, server_for(transport="shm") as server:
        addresses = [sink.address for sink in sinks]
        server.register("v2", tensors=weights(2, **SHAPE))
        with pytest.raises(UpdateAbortedError, match="injected into"):
            server.update("v2", addresses)
        for sink in sinks:
            state = sink.wait_until(lambda state: not state.served)
            assert (state.version, state.tainted) == ("v1", "")
            assert state.holds(weights(1, **SHAPE))
        updated(server, 3, addresses)
        assert all(sink.state().holds(weights(3, **SHAPE)) for sink in sinks)


def test_given_an_exchange_that_breaks_off_then_that_sink_is_tainted_and_the_others_take_theirs_back() -> None:
    broken = SinkSpec(SHAPE, fault=Fault("exchange", act="raise"))
    with fleet(SinkSpec(SHAPE), broken) as sinks, server_for() as server:
        addresses = [sink.address for sink in sinks]
        server.register("v2", tensors=weights(2, **SHAPE))
        with pytest.raises(TaintedError, match="sink 1") as caught:
            server.update("v2", addresses)
        assert [addresses[1] in name for name in caught.value.sinks] == [True]
        whole = sinks[0].wait_until(lambda state: not state.served)
        assert (whole.version, whole.tainted) == ("v1", "")
        assert whole.holds(weights(1, **SHAPE))
        updated(server, 3, addresses)
        assert all(sink.state().holds(weights(3, **SHAPE)) for sink in sinks)


def test_given_a_sink_that_dies_while_others_have_applied_then_they_take_it_back() -> None:
    """Given three sinks, when one is killed as it is to exchange, then the others serve v1, bit for bit."""
    settings = {"heartbeat_timeout": SWIFT["heartbeat_timeout"]}
    dying = SinkSpec(SHAPE, fault=Fault("exchange"))
    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE), dying) as sinks, server_for(**settings) as server:
        server.register("v2", tensors=weights(2, **SHAPE))
        with pytest.raises(UpdateAbortedError, match="sink 2"):
            server.update("v2", [sink.address for sink in sinks])
        assert sinks[2].dies()
        for sink in sinks[:2]:
            state = sink.wait_until(lambda state: not state.served)
            assert (state.version, state.tainted) == ("v1", "")
            assert state.holds(weights(1, **SHAPE))


def test_given_a_loader_when_it_was_replayed_once_then_the_next_version_is_staged() -> None:
    with fleet(SinkSpec(SHAPE, loader=by_name)) as (sink,), server_for(commit="auto") as server:
        first = updated(server, 2, [sink.address])
        assert not first.staged
        assert "in place" in first.in_place
        second = updated(server, 3, [sink.address])
        assert second.staged, second.in_place
        assert sink.state().holds(weights(3, **SHAPE))
        assert "replayed" in second.apply_summary[1]


class Transposed(torch.nn.Module):
    """Its weight lies in memory as kernels of FP8 read theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(384, 512).t())
        self.bias = torch.nn.Parameter(torch.zeros(384))


@pytest.mark.parametrize("transport", ["shm", "gloo"])
@pytest.mark.parametrize("loader", [None, by_name], ids=["by name", "by a loader"])
def test_given_a_weight_that_is_transposed_then_versions_are_staged_and_taken_back(
    loader: Callable[[torch.nn.Module], Loader] | None, transport: str
) -> None:
    module = Transposed()
    own = None if loader is None else loader(module)
    steps = [{name: torch.randn(tensor.shape) for name, tensor in module.state_dict().items()} for _ in range(3)]
    with (
        attach(module, loader=own, config=Config.load(**PATIENT)) as attachment,
        server_for(commit="auto", transport=transport) as server,
    ):
        for number, step in enumerate(steps):
            report = server.publish(f"step-{number}", step, [attachment.address])
            assert report is not None
            assert report.staged or (number == 0 and loader is not None), report.in_place
            assert all(torch.equal(tensor, step[name]) for name, tensor in module.state_dict().items())
        server.rollback([attachment.address])
    assert not module.weight.is_contiguous()
    assert all(torch.equal(tensor, steps[1][name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(("integrity", "staged"), [("always", True), ("never", False)])
def test_given_shortest_then_the_way_with_the_shorter_predicted_pause_is_taken_and_both_are_told(
    integrity: str, staged: bool
) -> None:
    """Given shared memory, then a transfer is one copy, and three where digests are compared; an exchange is two."""
    shape = {"layers": 8, "width": 1024}
    settings = {"transport": "shm", "commit": "shortest", "integrity": integrity}
    with fleet(SinkSpec(shape)) as (sink,), server_for(**settings) as server:
        server.register("v2", tensors=weights(2, **shape))
        report = server.update("v2", [sink.address])
        assert report is not None
        assert report.pauses is not None
        assert report.pauses.staged is not None
        assert report.staged is staged
        assert (report.pauses.in_place.seconds > report.pauses.staged.seconds) is staged
        assert ("shorter" in report.in_place) is not staged
        told = explain(report.plan, report.pauses)
        assert "held      staged" in told
        assert "; in place" in told
        assert sink.state().holds(weights(2, **shape))


def test_given_a_sink_that_cannot_stage_when_it_must_then_the_update_is_refused_with_the_reason() -> None:
    with fleet(SinkSpec(SHAPE, settings={"staging_budget": "1KiB"})) as (sink,), server_for() as server:
        server.register("v2", tensors=weights(2, **SHAPE))
        with pytest.raises(UpdateAbortedError, match="staging_budget is 1,024"):
            server.update("v2", [sink.address])
        state = sink.state()
        assert (state.version, state.served) == ("v1", "")


def test_given_auto_and_no_memory_to_stage_then_the_version_is_written_in_place_and_the_report_says_why() -> None:
    with fleet(SinkSpec(SHAPE, settings={"staging_budget": "1KiB"})) as (sink,), server_for(commit="auto") as server:
        report = updated(server, 2, [sink.address])
        assert not report.staged
        assert "staging_budget" in report.in_place
        assert sink.state().holds(weights(2, **SHAPE))
