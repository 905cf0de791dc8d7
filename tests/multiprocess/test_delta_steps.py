"""A trainer sends what has changed in a step, and sinks serve what they would if everything had come."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer, Report, ask_version
from ckpt_transport.checkpoint import StoredVersion
from ckpt_transport.errors import UpdateAbortedError
from ckpt_transport.events import UpdateBegan, observe
from ckpt_transport.planning import ServedShares
from ckpt_transport.service.delta_costs import RESTS
from ckpt_transport_torch import Attachment, attach
from tests.fleet import SinkSpec, fleet, model, weights
from tests.leftovers import left_behind
from tests.patience import DEADLINE, PATIENT

DELTAS = {**PATIENT, "delta": "on", "commit": "auto"}
CONFIG = Config.load(**DELTAS)
SHAPE: dict[str, Any] = {"layers": 3, "width": 64}


def in_bfloat16(seed: int, **shape: Any) -> torch.nn.Module:
    return model(seed, **shape).to(torch.bfloat16)


BF16 = SinkSpec(model=SHAPE, make=in_bfloat16)


def training(steps: int, rate: float = 1e-5) -> Iterator[dict[str, torch.Tensor]]:
    """Weights after each step of a small module that is trained in FP32, as they are served in BF16."""
    module = model(2, **SHAPE)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate)
    torch.manual_seed(3)
    for _ in range(steps):
        seen = torch.randn(8, SHAPE["width"])
        (module(seen) - seen.roll(1, 1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield {name: tensor.to(torch.bfloat16) for name, tensor in module.state_dict().items()}


def changed(tensors: dict[str, torch.Tensor], by: int = 1) -> dict[str, torch.Tensor]:
    """These tensors, of which each has one other element."""
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    for tensor in copies.values():
        tensor.view(-1)[0] += by
    return copies


def sent(report: Report | None) -> str:
    """Against which base a delta was sent, or why everything was."""
    assert report is not None
    assert report.delta is not None
    return report.delta.base or report.delta.reason


@pytest.mark.parametrize(("transport", "base"), [("shm", "host"), ("gloo", "host"), ("shm", "beside")])
def test_given_thirty_steps_of_training_by_deltas_then_sinks_serve_what_was_trained_after_a_rollback_too(
    transport: str, base: str
) -> None:
    config = Config.load(**DELTAS, transport=transport, delta_base=base)
    with fleet(BF16, BF16) as sinks, ParameterServer(config) as server:
        addresses = [sink.address for sink in sinks]
        before: dict[str, torch.Tensor] = {}
        for number, step in enumerate(training(30)):
            report = server.publish(f"step-{number}", step, addresses)
            before_this = f"step-{number - 1}"
            if number == 0:
                assert "does not hold" in sent(report)
            elif number == 16:
                assert "does not hold" in sent(report), "the rollback has brought a version that is not held here"
            else:
                assert sent(report) == before_this
                assert report is not None
                assert report.staged
                assert report.to_dict()["bytes"] < 0.5 * report.to_dict()["delta"]["version_nbytes"]
                assert report.to_dict()["tensors"] == len(step)
            if number == 15:
                server.rollback(addresses)
                assert all(sink.state().holds(before) for sink in sinks)
            elif number % 5 == 0 or number == 29:
                assert all(sink.state().holds(step) for sink in sinks)
            before = step


def test_given_a_sink_that_joins_late_then_all_get_everything_and_deltas_afterwards() -> None:
    steps = training(5)
    with fleet(BF16, BF16) as (early, late), ParameterServer(CONFIG) as server:
        for number in range(2):
            report = server.publish(f"step-{number}", next(steps), [early.address])
        assert sent(report) == "step-0"
        both = [early.address, late.address]
        assert "does not hold what all of these sinks have got" in sent(server.publish("step-2", next(steps), both))
        assert sent(server.publish("step-3", last := next(steps), both)) == "step-2"
        assert all(sink.state().holds(last) for sink in (early, late))


def test_given_a_sink_that_a_delta_has_not_reached_then_the_next_one_is_not_put_on_what_it_serves() -> None:
    with fleet(SinkSpec(), SinkSpec()) as sinks, ParameterServer(CONFIG) as server:
        both = [sink.address for sink in sinks]
        server.publish("step-1", weights(2), both)
        assert sent(server.publish("step-2", changed(weights(2)), both[:1])) == "step-1"
        latest = changed(changed(weights(2)), 2)
        assert "does not hold what all of these sinks have got" in sent(server.publish("step-3", latest, both))
        assert all(sink.state().holds(latest) for sink in sinks)
        assert sent(server.publish("step-4", changed(latest), both)) == "step-3"
        assert all(sink.state().holds(changed(latest)) for sink in sinks)


def test_given_another_trainer_that_brings_a_version_of_the_same_name_then_everything_comes_in_the_same_call() -> None:
    with fleet(SinkSpec(), SinkSpec()) as sinks, ParameterServer(CONFIG) as server, ParameterServer(CONFIG) as other:
        addresses = [sink.address for sink in sinks]
        server.publish("latest", weights(2), addresses)
        other.publish("latest", weights(3), addresses[1:])
        report = server.publish("latest", changed(weights(2)), addresses)
        assert "another update has brought" in sent(report)
        assert all(sink.state().holds(changed(weights(2))) for sink in sinks)
        report = server.publish("latest", changed(weights(2), 2), addresses)
        assert sent(report) == "latest"
        assert all(sink.state().holds(changed(weights(2), 2)) for sink in sinks)


@contextmanager
def served(**settings: Any) -> Iterator[tuple[torch.nn.Module, Attachment]]:
    """A module of this process that is served."""
    module = model(1)
    with attach(module, version="v1", config=Config.load(**{**PATIENT, **settings})) as attachment:
        yield module, attachment


def holds(module: torch.nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())


def test_given_a_sink_that_somebody_else_has_written_to_then_everything_comes_in_the_same_call() -> None:
    with served() as (module, attachment), ParameterServer(CONFIG) as server:
        server.publish("step-1", weights(2), [attachment.address])
        assert ask_version(attachment.address, CONFIG, DEADLINE).version == "step-1", "it has noted what it serves then"
        with torch.no_grad():
            next(module.parameters()).view(-1)[5] += 1
        report = server.publish("step-2", changed(weights(2)), [attachment.address])
        assert "somebody else has written" in sent(report)
        assert holds(module, changed(weights(2)))


def test_given_a_sink_that_has_no_room_for_a_delta_then_everything_comes_in_the_same_call() -> None:
    with served(staging_budget=1) as (module, attachment), ParameterServer(CONFIG) as server:
        for by in (1, 2):
            report = server.publish("step", changed(weights(2), by), [attachment.address])
            assert holds(module, changed(weights(2), by))
        assert "staging_budget" in sent(report)
        assert sent(report).count(": a delta of") == 1
        assert sent(report).count("Sequential in process") == 1


def test_given_a_delta_that_was_given_up_then_the_next_update_sends_everything_and_the_one_after_a_delta() -> None:
    def refuse() -> None:
        raise RuntimeError("not now")

    with served() as (module, attachment), ParameterServer(CONFIG) as server:
        to = [attachment.address]
        server.publish("step-1", weights(2), to)
        with pytest.raises(UpdateAbortedError, match="not now"):
            server.publish("step-2", changed(weights(2), 1), to, before_hold=refuse)
        assert holds(module, weights(2))
        assert sent(server.publish("step-3", changed(weights(2), 2), to)) == "the delta before was not committed"
        assert sent(server.publish("step-4", changed(weights(2), 3), to)) == "step-3"
        assert holds(module, changed(weights(2), 3))


def test_given_versions_that_are_registered_then_one_that_is_still_there_is_the_base() -> None:
    with served() as (module, attachment), ParameterServer(CONFIG) as server:
        to = [attachment.address]
        for by in range(4):
            server.register(f"v{by}", tensors=changed(weights(2), by))
        server.update("v0", to)
        assert sent(server.update("v1", to)) == "v0"
        assert "is what they have got" in sent(server.update("v1", to))
        server.unregister("v1")
        assert "does not hold" in sent(server.update("v2", to))
        server.stage("v3", to).commit()
        assert holds(module, changed(weights(2), 3))


def test_given_a_version_that_is_staged_then_what_has_changed_is() -> None:
    with served() as (module, attachment), ParameterServer(CONFIG) as server:
        to = [attachment.address]
        server.register("v1", tensors=weights(2))
        server.register("v2", tensors=changed(weights(2)))
        server.update("v1", to)
        job = server.stage("v2", to)
        assert holds(module, weights(2))
        assert sent(job.commit()) == "v1"
        assert holds(module, changed(weights(2)))


def test_given_a_base_that_somebody_has_written_to_then_everything_is_sent() -> None:
    with served() as (module, attachment), ParameterServer(CONFIG) as server:
        stored = server.register("v1", tensors=weights(2))
        server.register("v2", tensors=changed(weights(2)))
        server.update("v1", [attachment.address])
        stored.tensors()["0.weight"].add_(1)
        assert "somebody has written to 'v1'" in sent(server.update("v2", [attachment.address]))
        assert holds(module, changed(weights(2)))


def test_given_what_is_not_to_be_compared_then_the_report_says_what_it_is() -> None:
    with served() as (module, attachment), ParameterServer(CONFIG) as server:
        to = [attachment.address]
        server.publish("step-1", weights(2), to)
        assert "would take more than 50% of all bytes" in sent(server.publish("step-2", weights(3), to))
        one = {"0.bias": weights(4)["0.bias"]}
        assert "has the others" in sent(server.publish("step-3", one, to, base="step-2"))
        assert holds(module, weights(3) | one)
        assert "does not hold" in sent(server.publish("step-4", weights(3), to))
        server.lend("step-5", changed(weights(3)))
        assert sent(server.update("step-5", to)) == "step-4"
        assert holds(module, changed(weights(3)))
        server.lend("step-6", changed(weights(3), 2))
        assert "'step-5' is lent" in sent(server.update("step-6", to))
        assert holds(module, changed(weights(3), 2))


def test_given_auto_and_a_step_that_changes_too_much_then_everything_is_sent_for_a_while_and_the_report_says_so() -> (
    None
):
    with served() as (module, attachment), ParameterServer(Config.load(**{**DELTAS, "delta": "auto"})) as server:
        to = [attachment.address]
        server.publish("step-0", weights(2), to)
        said = [sent(server.publish(f"dense-{number}", weights(3 + number), to)) for number in range(1 + RESTS)]
        assert said[0] == "what has changed since 'step-0' would take more than 50% of all bytes"
        assert set(said[1:-1]) == {f"{said[0]}; deltas are looked at again later"}
        assert said[-1] == f"{said[0]}; deltas are looked at again in the next update"
        latest = changed(weights(3 + RESTS))
        assert sent(server.publish("sparse", latest, to)) == f"dense-{RESTS}"
        assert holds(module, latest)


def test_given_deltas_then_memory_is_two_versions_and_what_differs_and_all_is_given_back() -> None:
    already = len(left_behind())
    with served() as (_, attachment), ParameterServer(CONFIG) as server:
        to = [attachment.address]
        for by in range(4):
            report = server.publish("step", changed(weights(2), by), to)
        assert sent(report) == "step"
        assert len(left_behind()) - already <= 3
        with pytest.raises(UpdateAbortedError):
            server.publish("other", {"unknown": torch.zeros(3)}, to)
        assert sent(server.publish("step", changed(weights(2), 9), to)) == "step"
    assert len(left_behind()) == already


def test_given_nothing_that_has_changed_then_a_version_is_served_under_its_own_name() -> None:
    with served() as (module, attachment), ParameterServer(CONFIG) as server:
        server.publish("step-1", weights(2), [attachment.address])
        report = server.publish("step-2", weights(2), [attachment.address])
        assert sent(report) == "step-1"
        assert attachment.version == "step-2"
        assert holds(module, weights(2))


def test_given_weights_that_are_gathered_one_by_one_then_what_has_changed_is_sent() -> None:
    with served() as (module, attachment), ParameterServer(CONFIG) as server:
        for by in range(3):
            gathered = ((name, tensor) for name, tensor in changed(weights(2), by).items())
            report = server.publish(f"step-{by}", gathered, [attachment.address])
        assert sent(report) == "step-1"
        assert holds(module, changed(weights(2), 2))


class TwoRanks:
    """Two source ranks in threads of this process. Both have the biases, and each every other weight."""

    def __init__(self, stack: ExitStack, folder: Path, **settings: Any) -> None:
        config = Config.load(**{**DELTAS, "coordinator": f"ipc://{folder}/meet.sock", **settings})
        self._threads = stack.enter_context(ThreadPoolExecutor(2))
        self.servers = [stack.enter_context(ParameterServer(config, rank=rank, world_size=2)) for rank in range(2)]

    def publish(self, version: str, tensors: dict[str, torch.Tensor], to: list[str]) -> Report | None:
        def of(rank: int) -> dict[str, torch.Tensor]:
            return {
                name: tensor
                for number, (name, tensor) in enumerate(tensors.items())
                if name.endswith("bias") or number // 2 % 2 == rank
            }

        def publish(rank: int) -> Report | None:
            return self.servers[rank].publish(version, of(rank), to, replicated=True)

        reports = list(self._threads.map(publish, range(2)))
        assert reports[1] is None
        return reports[0]


@pytest.mark.parametrize("base", ["host", "beside"])
def test_given_two_source_ranks_then_each_brings_what_has_changed_in_its_own_and_it_is_taken_back(
    tmp_path: Path, base: str
) -> None:
    with fleet(SinkSpec(), SinkSpec()) as sinks, ExitStack() as stack:
        to = [sink.address for sink in sinks]
        ranks = TwoRanks(stack, tmp_path, delta_base=base)
        assert "does not hold" in sent(ranks.publish("step-0", weights(2), to))
        for by in (1, 2, 3):
            report = ranks.publish(f"step-{by}", changed(weights(2), by), to)
            assert sent(report) == f"step-{by - 1}"
            assert report is not None
            assert report.delta is not None
            assert report.to_dict()["bytes"] < 0.1 * report.delta.version_nbytes
            assert all(sink.state().holds(changed(weights(2), by)) for sink in sinks)
        ranks.servers[0].rollback(to)
        assert all(sink.state().holds(changed(weights(2), 2)) for sink in sinks)
        assert "does not hold" in sent(ranks.publish("step-4", weights(4), to))
        assert "would take more than 50%" in sent(ranks.publish("step-5", weights(5), to))
        assert sent(ranks.publish("step-6", changed(weights(5)), to)) == "step-5"
        assert all(sink.state().holds(changed(weights(5))) for sink in sinks)


def test_given_two_source_ranks_and_a_sink_that_refuses_their_delta_then_both_send_everything_in_the_same_call(
    tmp_path: Path,
) -> None:
    with served(staging_budget=1) as (module, attachment), ExitStack() as stack:
        ranks = TwoRanks(stack, tmp_path)
        for by in (1, 2, 3):
            report = ranks.publish("step", changed(weights(2), by), [attachment.address])
            assert holds(module, changed(weights(2), by))
        assert "staging_budget" in sent(report)


def test_given_two_source_ranks_of_which_one_is_late_to_say_what_differs_then_both_send_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 leads an update that brings everything by the time the other has found what differs."""
    leads = Event()

    def note(event: object) -> None:
        if isinstance(event, UpdateBegan) and event.version == "step-2":
            leads.set()

    with served() as (module, attachment), ExitStack() as stack:
        ranks = TwoRanks(stack, tmp_path, join_timeout=2.0)
        to = [attachment.address]
        ranks.publish("step-1", weights(2), to)
        late = ranks.servers[1]._deltas
        find = late.offered

        def find_late(stored: StoredVersion, base_update: str, served: ServedShares) -> StoredVersion:
            if base_update:
                assert leads.wait(DEADLINE)
            return find(stored, base_update, served)

        monkeypatch.setattr(late, "offered", find_late)
        stack.callback(observe(note))
        assert "source rank 1 does not say" in sent(ranks.publish("step-2", changed(weights(2)), to))
        assert holds(module, changed(weights(2)))
        assert sent(ranks.publish("step-3", changed(weights(2), 2), to)) == "step-2"
        assert holds(module, changed(weights(2), 2))


def test_given_two_source_ranks_of_which_one_has_lost_its_base_then_both_send_everything(tmp_path: Path) -> None:
    with served() as (module, attachment), ExitStack() as stack:
        ranks = TwoRanks(stack, tmp_path)
        to = [attachment.address]
        ranks.publish("step-1", weights(2), to)
        ranks.servers[1]._deltas.let_go()
        assert "source rank 1 does not hold" in sent(ranks.publish("step-2", changed(weights(2)), to))
        assert sent(ranks.publish("step-3", changed(weights(2), 2), to)) == "step-2"
        assert holds(module, changed(weights(2), 2))
