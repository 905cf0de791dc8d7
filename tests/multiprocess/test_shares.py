"""Ranks that need a part of each version are sent that part once their loaders are known, between real processes."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport import Config, ParameterServer, Report
from ckpt_transport.errors import TaintedError, UpdateAbortedError, UpdateError
from ckpt_transport.planning import explain
from ckpt_transport_torch import attach
from tests.available import where_available
from tests.experts import EXPERTS, WIDTH, loaded, loader, rank_of, weights_of
from tests.fleet import SinkProcess, SinkSpec, fleet
from tests.injection import Fault
from tests.patience import PATIENT, SWIFT

SIZE = 4
MATRIX = WIDTH * WIDTH * 4
ALL = WIDTH * 4 + (EXPERTS + 2) * MATRIX
OWN = WIDTH * 4 + 2 * MATRIX + EXPERTS // SIZE * MATRIX
"""Norm, both sliced matrices whole (this loader takes tensors whole), and the experts of one rank."""
READ = WIDTH * 4 + 2 * MATRIX // SIZE + EXPERTS // SIZE * MATRIX
"""The same where memory is mapped: of the sliced matrices, one by rows and one by columns, only the slices."""
RANKS = tuple(
    SinkSpec(make=rank_of, model={"rank": rank, "size": SIZE}, loader=loader, engine="engine") for rank in range(SIZE)
)
TRANSPORTS = tuple(map(where_available, ("gloo", "nixl", "mooncake", "ucx")))


def update(server: ParameterServer, sinks: list[SinkProcess], seed: int) -> Report:
    server.register(f"v{seed}", tensors=weights_of(seed))
    report = server.update(f"v{seed}", [sink.address for sink in sinks])
    assert report is not None
    for rank, sink in enumerate(sinks):
        assert sink.state().holds(loaded(seed, rank % SIZE, SIZE)), f"rank {rank} after v{seed}"
    return report


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_ranks_that_need_a_part_then_the_first_version_goes_to_all_and_the_next_to_each_its_own(
    transport: str,
) -> None:
    settings = Config.load(transport=transport, bucket_bytes="300KiB", **PATIENT)
    with fleet(*RANKS) as sinks, ParameterServer(settings) as server:
        first = update(server, sinks, 2)
        assert not first.plan.moves_shares
        for seed in (3, 4):
            report = update(server, sinks, seed)
            assert report.plan.bytes_to == dict.fromkeys(range(1, SIZE + 1), OWN)
            assert f"{OWN / ALL:.1%}" in explain(report.plan)


def test_given_ranks_that_map_a_version_then_each_reads_its_slices_and_finds_a_wrong_byte_in_them() -> None:
    """Given columns of one matrix for each rank, when a byte changes that only the last one reads, then that one fails.

    The digests were made before, at the first update with the version.
    """
    settings = Config.load(transport="shm", **PATIENT)
    with fleet(*RANKS) as sinks, ParameterServer(settings) as server:
        assert update(server, sinks, 2).plan.bytes_to == dict.fromkeys(range(1, SIZE + 1), ALL)
        for seed in (3, 4):
            report = update(server, sinks, seed)
            assert report.plan.bytes_to == dict.fromkeys(range(1, SIZE + 1), READ)
            assert f"{READ / ALL:.1%}" in explain(report.plan)
        (across,) = (each for each in report.plan.manifest.tensors if each.spec.name == "across")
        stored = server.register("v5", tensors=weights_of(5))
        server.update("v5", [sink.address for sink in sinks])
        stored.buffers[0].tensor[across.offset + 7 * WIDTH * 4 + WIDTH * 4 - 1] ^= 1
        with pytest.raises(TaintedError, match=f"{sinks[-1].label} got bytes of"):
            server.update("v5", [sink.address for sink in sinks])


def test_given_ranks_that_do_not_say_what_they_need_then_they_get_everything_beside_those_that_do() -> None:
    """Given two replicas, of which one compares every update with its loader, then that one is sent all."""
    careful = tuple(
        SinkSpec(make=rank_of, model=rank.model, loader=loader, engine="other", settings={"verify_apply": "always"})
        for rank in RANKS
    )
    with fleet(*RANKS, *careful) as sinks, ParameterServer(Config.load(transport="gloo", **PATIENT)) as server:
        update(server, sinks, 2)
        report = update(server, sinks, 3)
    assert report.plan.bytes_to == dict.fromkeys(range(1, 5), OWN) | dict.fromkeys(range(5, 9), ALL)


def test_given_shares_when_a_version_has_other_tensors_then_it_goes_to_all_again() -> None:
    """Given shares of one set of tensors, when a version has one more, then shares do not count, and then again."""
    with fleet(*RANKS) as sinks, ParameterServer(Config.load(transport="gloo", **PATIENT)) as server:
        update(server, sinks, 2)
        assert update(server, sinks, 3).plan.moves_shares
        more = weights_of(4) | {"experts.99": weights_of(4)["experts.0"]}
        server.register("more", tensors=more)
        report = server.update("more", [sink.address for sink in sinks])
        assert report is not None
        assert not report.plan.moves_shares
        assert all(sink.state().holds(loaded(4, rank, SIZE)) for rank, sink in enumerate(sinks))
        assert not update(server, sinks, 5).plan.moves_shares
        assert update(server, sinks, 6).plan.moves_shares


@pytest.mark.parametrize("transport", ["gloo", "shm"])
def test_given_shares_when_an_update_fails_half_way_then_everything_goes_to_all(transport: str) -> None:
    """Given a rank that fails while its share arrives, then none serves until everything was sent again."""
    failing = SinkSpec(
        make=rank_of,
        model=RANKS[0].model,
        loader=loader,
        engine="engine",
        fault=Fault("load", count=12 if transport == "gloo" else 5, act="raise"),
    )
    settings = Config.load(transport=transport, bucket_bytes="256KiB", **PATIENT)
    with fleet(failing, *RANKS[1:]) as sinks, ParameterServer(settings) as server:
        update(server, sinks, 2)
        server.register("v3", tensors=weights_of(3))
        with pytest.raises(UpdateError, match="injected into load"):
            server.update("v3", [sink.address for sink in sinks])
        report = update(server, sinks, 4)
        assert report.plan.bytes_to[1] == ALL
        assert update(server, sinks, 5).plan.bytes_to[1] == (OWN if transport == "gloo" else READ)


def test_given_ranks_updated_by_p2p_when_one_dies_then_the_others_end_with_their_shares() -> None:
    """Given engines of one rank each, when one is killed half-way, then a new plan serves the others."""
    alone = [SinkSpec(make=rank_of, model={"rank": rank, "size": 2}, loader=loader) for rank in (0, 1)]
    victim = SinkSpec(make=rank_of, model={"rank": 1, "size": 2}, loader=loader, fault=Fault("load", count=14))
    settings = Config.load(transport="gloo", bucket_bytes="256KiB", **SWIFT)
    with fleet(*alone, victim) as sinks, ParameterServer(settings) as server:
        addresses = [sink.address for sink in sinks]
        for seed in (2, 3):
            server.register(f"v{seed}", tensors=weights_of(seed))
        server.update("v2", addresses)
        report = server.update_p2p("v3", addresses, ranks=[0, 1, 2])
        assert report is not None
        assert sinks[2].dies()
        assert list(report.left) == [sinks[2].address]
        for rank in (0, 1):
            assert sinks[rank].state().holds(loaded(3, rank, 2))
            assert not sinks[rank].state().tainted


def test_given_a_module_that_changes_while_routes_are_opened_then_the_update_is_refused_and_nothing_is_lost() -> None:
    """Given a share that was said, when a parameter is bound anew before requests are held, then no byte has moved."""
    module = rank_of(1, 0, 4)
    settings = Config.load(transport="gloo", **PATIENT)
    with attach(module, loader=loader(module)) as serving, ParameterServer(settings) as server:
        for seed in (2, 3, 4):
            server.register(f"v{seed}", tensors=weights_of(seed))
        server.update("v2", [serving.address])
        server.update("v3", [serving.address])

        def bind_anew() -> None:
            module.norm = torch.nn.Parameter(module.norm.detach().clone())

        with pytest.raises(UpdateAbortedError, match="has changed since it said what it needs"):
            server.update("v4", [serving.address], before_hold=bind_anew)
        assert (serving.version, serving.tainted) == ("v3", "")
        report = server.update("v4", [serving.address])
        assert report is not None
        assert report.plan.bytes_to[1] == ALL
        assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in loaded(4, 0, 4).items())
