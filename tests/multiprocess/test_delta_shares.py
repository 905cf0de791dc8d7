"""Ranks of a tensor-parallel engine are sent what has changed in their own rows, columns and experts, and no more."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer, Report
from tests import experts, halves
from tests.deltas import sent_by_delta
from tests.fleet import SinkSpec, fleet
from tests.patience import PATIENT

SIZE = 2
RANKS = tuple(
    SinkSpec(make=halves.rank_of, model={"rank": rank, "size": SIZE}, loader=halves.loader, engine="engine")
    for rank in range(SIZE)
)
EXPERTS = tuple(
    SinkSpec(make=experts.rank_of, model={"rank": rank, "size": SIZE}, loader=experts.loader, engine="experts")
    for rank in range(SIZE)
)
DELTAS: dict[str, Any] = {**PATIENT, "delta": "on", "commit": "auto"}
LIST_BYTES = 4
"""Of a changed element of BF16: its place and its value."""


def some_changed(tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """These tensors with other values at one place in twenty, at random."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, tensor in tensors.items():
        found[name] = torch.where(torch.rand(tensor.shape, generator=generator) < 0.05, tensor + 1, tensor)
    return found


def part_of(tensors: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """What a rank serves of a version."""
    return {name: halves.part_of(name, tensor, rank, SIZE) for name, tensor in tensors.items()}


def changed_in(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> int:
    """How many elements differ."""
    return sum(int((old[name] != new[name]).sum()) for name in old)


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_given_ranks_with_rows_and_columns_then_each_is_sent_what_has_changed_in_its_own(transport: str) -> None:
    with fleet(*RANKS) as sinks, ParameterServer(Config.load(**DELTAS, transport=transport)) as server:
        addresses = [sink.address for sink in sinks]
        versions = [halves.weights_of(2)]
        server.publish("step-0", versions[0], addresses)
        for number in (1, 2):
            versions.append(some_changed(versions[-1], number))
            report = sent_by_delta(server.publish(f"step-{number}", versions[-1], addresses), f"step-{number - 1}")
            plan = report.plan
            for rank, sink in enumerate(sinks):
                assert sink.state().holds(part_of(versions[-1], rank))
                changed = changed_in(*(part_of(version, rank) for version in versions[-2:]))
                least = changed * LIST_BYTES
                assert least <= plan.bytes_to[plan.topology.sinks[rank]] < 1.01 * least, plan.notes
        for expected in (versions[1], versions[2]):
            server.rollback(addresses)
            assert all(sink.state().holds(part_of(expected, rank)) for rank, sink in enumerate(sinks))


def test_given_two_engines_of_which_one_serves_everything_then_only_ranks_are_sent_less() -> None:
    whole = SinkSpec(make=halves.rank_of, model={"rank": 0, "size": 1}, loader=halves.loader)
    with fleet(*RANKS, whole) as sinks, ParameterServer(Config.load(**DELTAS, transport="gloo")) as server:
        addresses = [sink.address for sink in sinks]
        old = halves.weights_of(2)
        server.publish("step-0", old, addresses)
        new = some_changed(old, 1)
        plan = sent_by_delta(server.publish("step-1", new, addresses), "step-0").plan
        assert [sink.state().holds(part_of(new, rank)) for rank, sink in enumerate(sinks[:2])] == [True, True]
        assert sinks[2].state().holds(new)
        assert plan.bytes_to[3] == plan.manifest.nbytes
        assert max(plan.bytes_to[1], plan.bytes_to[2]) < 0.51 * plan.manifest.nbytes


def test_given_a_change_in_one_expert_then_the_rank_without_it_needs_no_byte() -> None:
    with fleet(*EXPERTS) as sinks, ParameterServer(Config.load(**DELTAS, transport="gloo")) as server:
        addresses = [sink.address for sink in sinks]
        tensors = experts.weights_of(2)
        server.publish("step-0", tensors, addresses)
        tensors["experts.0"] = tensors["experts.0"] + 1
        plan = sent_by_delta(server.publish("step-1", tensors, addresses), "step-0").plan
        (without,) = (share.nbytes for share in plan.topology.shares)
        assert without == 0
        first = torch.stack([tensors[f"experts.{n}"] for n in range(4)])
        assert sinks[0].state().holds(experts.loaded(2, 0, SIZE) | {"experts": first})
        assert sinks[1].state().holds(experts.loaded(2, 1, SIZE))


def test_given_two_source_ranks_then_both_send_what_has_changed_in_the_shares_of_sinks(tmp_path: Path) -> None:
    config = Config.load(**DELTAS, transport="gloo", coordinator=f"ipc://{tmp_path}/meet.sock")
    with fleet(*RANKS) as sinks, ExitStack() as stack:
        addresses = [sink.address for sink in sinks]
        threads = stack.enter_context(ThreadPoolExecutor(2))
        servers = [stack.enter_context(ParameterServer(config, rank=rank, world_size=2)) for rank in range(2)]

        def publish(version: str, tensors: dict[str, torch.Tensor]) -> Report | None:
            def of(rank: int) -> dict[str, torch.Tensor]:
                return {name: tensor for name, tensor in tensors.items() if (name == "down") == (rank == 1)}

            return next(threads.map(lambda rank: servers[rank].publish(version, of(rank), addresses), range(2)))

        old = halves.weights_of(2)
        publish("step-0", old)
        new = some_changed(old, 1)
        plan = sent_by_delta(publish("step-1", new), "step-0").plan
        assert all(sink.state().holds(part_of(new, rank)) for rank, sink in enumerate(sinks))
        assert max(plan.bytes_to[2], plan.bytes_to[3]) < 0.51 * plan.manifest.nbytes
