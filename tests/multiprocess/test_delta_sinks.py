"""Sinks take deltas through loaders that fuse and slice, and a rollback takes back what came last, whichever way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer, Report, ask_version
from ckpt_transport.errors import UpdateAbortedError
from ckpt_transport_torch import attach
from tests.experts import Rank, loader, rank_of, weights_of
from tests.fleet import SinkProcess, SinkSpec, fleet, model, weights
from tests.patience import DEADLINE, PATIENT, SWIFT

SIZE = 2
RANKS = tuple(
    SinkSpec(make=rank_of, model={"rank": rank, "size": SIZE}, loader=loader, engine="engine") for rank in range(SIZE)
)
DELTAS: dict[str, Any] = {**PATIENT, "delta": "on", "commit": "auto"}


def some_changed(tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """These tensors with other values at every hundredth place."""
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    for tensor in copies.values():
        tensor.view(-1)[seed::100] += 1
    return copies


def loaded(tensors: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """What a rank holds of a version."""
    module = Rank(rank, SIZE)
    loader(module)(tensors.items())
    return module.state_dict()


def base_of(report: Report | None) -> str:
    assert report is not None
    assert report.delta is not None
    return report.delta.base


def all_hold(sinks: list[SinkProcess], tensors: dict[str, torch.Tensor]) -> bool:
    return all(sink.state().holds(loaded(tensors, rank)) for rank, sink in enumerate(sinks))


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_given_ranks_with_slices_when_deltas_come_then_each_holds_what_its_loader_makes_of_all(transport: str) -> None:
    with fleet(*RANKS) as sinks, ParameterServer(Config.load(**DELTAS, transport=transport)) as server:
        addresses = [sink.address for sink in sinks]
        tensors = weights_of(2)
        assert base_of(server.publish("step-0", tensors, addresses)) == ""
        for number in (1, 2, 3):
            before, tensors = tensors, some_changed(tensors, number)
            report = server.publish(f"step-{number}", tensors, addresses)
            assert base_of(report) == f"step-{number - 1}", report
            assert all_hold(sinks, tensors)
        for expected in (before, tensors):
            server.rollback(addresses)
            assert all_hold(sinks, expected)


def test_given_versions_that_come_whole_and_as_deltas_then_a_rollback_takes_back_the_last_one() -> None:
    one = weights(2)
    other = some_changed(one, 3)
    third = weights(4)
    with fleet(SinkSpec(), SinkSpec()) as sinks, ParameterServer(Config.load(**DELTAS)) as server:
        addresses = [sink.address for sink in sinks]

        def serve(expected: dict[str, torch.Tensor]) -> bool:
            return all(sink.state().holds(expected) for sink in sinks)

        server.publish("whole", one, addresses)
        assert base_of(server.publish("delta", other, addresses)) == "whole"
        for name, expected in (("whole", one), ("delta", other)):
            assert server.rollback(addresses).version == name
            assert serve(expected)
        assert base_of(server.publish("third", third, addresses)) == ""
        assert serve(third)
        assert server.rollback(addresses).version == "delta"
        assert serve(other)


def test_given_somebody_who_writes_after_a_delta_then_it_is_not_undone_and_the_next_version_comes_whole() -> None:
    module = model(1)
    with attach(module, version="v1", config=Config.load(**PATIENT)) as attachment:
        to = [attachment.address]
        with ParameterServer(Config.load(**DELTAS)) as server:
            server.publish("step-1", weights(2), to)
            assert base_of(server.publish("step-2", some_changed(weights(2), 1), to)) == "step-1"
            assert ask_version(to[0], timeout=DEADLINE).previous == "step-1", "it has noted what it serves"
            with torch.no_grad():
                next(module.parameters()).view(-1)[7] += 1
            with pytest.raises(UpdateAbortedError, match="somebody else has written to what is served"):
                server.rollback(to)
            assert (attachment.version, attachment.tainted) == ("step-2", "")
            server.publish("step-3", some_changed(weights(2), 5), to)
            state = module.state_dict()
            assert all(torch.equal(state[name], each) for name, each in some_changed(weights(2), 5).items())


def test_given_deltas_and_a_version_that_comes_whole_then_each_rollback_takes_back_the_last_that_is_kept() -> None:
    spec = SinkSpec(settings={"keep_previous": 3})
    versions = {"v1": weights(1), "v2": weights(2), "v4": weights(4)}
    versions["v3"] = some_changed(versions["v2"], 3)
    versions["v5"] = some_changed(versions["v4"], 5)
    with fleet(spec, spec) as sinks, ParameterServer(Config.load(**DELTAS)) as server:
        addresses = [sink.address for sink in sinks]

        def published(name: str) -> str:
            return base_of(server.publish(name, versions[name], addresses))

        def serve(name: str, *back: str) -> bool:
            said = [ask_version(address, timeout=DEADLINE) for address in addresses]
            assert {(each.version, each.previous, each.earlier) for each in said} == {(name, back[0], back[1:])}
            return all(sink.state().holds(versions[name]) for sink in sinks)

        assert [published(name) for name in ("v2", "v3")] == ["", "v2"]
        assert serve("v3", "v2", "v1")
        for name, *back in (("v2", "v1"), ("v1", "v2"), ("v2", "v1")):
            assert server.rollback(addresses).version == name
            assert serve(name, *back)
        assert published("v3") == "", "a rollback came between, and everything after it takes the place of v1"
        assert [published(name) for name in ("v4", "v5")] == ["", "v4"]
        assert serve("v5", "v4", "v3")
        for name, *back in (("v4", "v3"), ("v3", "v4"), ("v4", "v3")):
            assert server.rollback(addresses).version == name
            assert serve(name, *back)


def test_given_two_deltas_when_rolled_back_between_and_twice_then_each_takes_back_one_step() -> None:
    spec = SinkSpec(settings={"keep_previous": 3})
    versions = [weights(2)]
    for number in range(1, 5):
        versions.append(some_changed(versions[-1], number))
    with fleet(spec) as (sink,), ParameterServer(Config.load(**DELTAS)) as server:

        def publish(number: int) -> str:
            return base_of(server.publish(f"step-{number}", versions[number], [sink.address]))

        def back_to(number: int) -> bool:
            return server.rollback([sink.address]).version == f"step-{number}" and sink.state().holds(versions[number])

        assert [publish(number) for number in range(3)] == ["", "step-0", "step-1"]
        assert back_to(1)
        assert back_to(0)
        assert [publish(number) for number in (1, 2, 3, 4)] == ["", "step-1", "step-2", "step-3"]
        assert [back_to(number) for number in (3, 2, 1)] == [True] * 3


def test_given_little_memory_for_undo_logs_then_the_oldest_is_forgotten() -> None:
    versions = [weights(2)]
    for number in range(1, 4):
        versions.append(some_changed(versions[-1], number))
    module = model(1)
    log = 12 * sum(len(tensor.view(-1)[1::100]) for tensor in versions[0].values())
    config = Config.load(**PATIENT, keep_previous=9, staging_budget=int(2.5 * log))
    with attach(module, version="v1", config=config) as attachment, ParameterServer(Config.load(**DELTAS)) as server:
        to = [attachment.address]
        for number, version in enumerate(versions):
            server.publish(f"step-{number}", version, to)
        said = ask_version(to[0], timeout=DEADLINE)
        assert (said.previous, said.earlier) == ("step-2", ("step-1",))


def test_given_a_sink_that_has_died_since_then_the_next_delta_names_it_and_the_other_serves_on() -> None:
    old = weights(2)
    impatient = {**SWIFT, "delta": "on", "commit": "auto", "join_timeout": 2.0}
    with (
        fleet(SinkSpec(settings=SWIFT), SinkSpec(settings=SWIFT)) as (lives, dies),
        ParameterServer(Config.load(**impatient)) as server,
    ):
        server.publish("old", old, [lives.address, dies.address])
        dies.process.kill()
        assert dies.dies()
        with pytest.raises(UpdateAbortedError, match=f"did not join within 2 s: {dies.address}"):
            server.publish("new", some_changed(old, 1), [lives.address, dies.address])
        assert lives.state().holds(old)
        assert base_of(server.publish("newest", some_changed(old, 2), [lives.address])) == "old"
