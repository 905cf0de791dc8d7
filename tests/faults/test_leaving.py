"""Holders and engines die in the middle of an update by P2P: they are named, and the others end it."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from ckpt_transport import Config, Joiner, ParameterServer
from ckpt_transport.errors import TaintedError, UpdateAbortedError, UpdateError
from tests.fleet import HolderProcess, HolderSpec, SinkSpec, SourceProcess, fleet, holders, weights
from tests.injection import Fault
from tests.patience import SWIFT
from tests.site import READ, SOCKETS
from tests.support.transports import over_the_network

SHAPE = {"layers": 8, "width": 384}
SMALL: dict[str, Any] = {"bucket_bytes": "96KiB", "ring_depth": 3, **SWIFT}
ROUNDS = int(os.environ.get("CKPT_TEST_ROUNDS", "6"))
"""How many random deaths are tried; 100 before a release."""
EARLY = [Fault("propose"), Fault("open"), Fault("connect")]

pytestmark = pytest.mark.usefixtures("dead_are_swept")


def joiner(running: list[HolderProcess], folder: Path, transport: str) -> Joiner:
    paths = [holder.save(folder / f"metas-{number}.json") for number, holder in enumerate(running)]
    return Joiner(paths, Config.load(transport=transport, **SMALL))


@pytest.mark.parametrize("fault", [*EARLY, Fault("ended", 5), Fault("ended", 20)], ids=lambda f: f"{f.where}{f.count}")
@pytest.mark.parametrize("transport", ["gloo", READ, f"{READ}-chain", f"{SOCKETS}-chain"])
def test_given_three_holders_when_one_dies_then_it_is_named_and_the_others_send_the_rest(
    site: str, tmp_path: Path, transport: str, fault: Fault
) -> None:
    """Given three holders and two engines, when one holder is killed, then both engines get every byte."""
    spec, held = SinkSpec(model=SHAPE, site=site), HolderSpec(model=SHAPE, site=site)
    dying = HolderSpec(model=SHAPE, site=site, fault=fault)
    with fleet(spec, spec) as sinks, holders(held, dying, held) as running:
        report = joiner(running, tmp_path, transport).update("v2", [sink.address for sink in sinks])
        assert [running[1].address in who for who in report.left.values()] == [True], report.left
        for sink in sinks:
            state = sink.state()
            assert (state.version, state.tainted, state.served) == ("v2", "", "")
            assert state.holds(weights(2, **SHAPE))


@pytest.mark.parametrize(
    "fault",
    [*EARLY, Fault("hold"), Fault("load"), Fault("load", 9), Fault("finish")],
    ids=lambda f: f"{f.where}{f.count}",
)
@pytest.mark.parametrize("transport", ["gloo", f"{READ}-chain"])
def test_given_three_engines_when_one_dies_then_it_is_named_and_the_others_join(
    site: str, tmp_path: Path, transport: str, fault: Fault
) -> None:
    """Given three engines, when the middle one is killed, then the first and the last get every byte."""
    spec, dying = SinkSpec(model=SHAPE, site=site), SinkSpec(model=SHAPE, site=site, fault=fault)
    with fleet(spec, dying, spec) as sinks, holders(HolderSpec(model=SHAPE, site=site)) as running:
        report = joiner(running, tmp_path, transport).update("v2", [sink.address for sink in sinks])
        assert sinks[1].dies()
        assert [sinks[1].label in who for who in report.left.values()] == [True], report.left
        for sink in (sinks[0], sinks[2]):
            state = sink.state()
            assert (state.version, state.tainted, state.served) == ("v2", "", "")
            assert state.holds(weights(2, **SHAPE))


def test_given_a_holder_that_dies_late_then_what_an_engine_has_is_not_given_to_it_again(
    site: str, tmp_path: Path
) -> None:
    """Given a holder that dies late, then the rest is planned from where it stood."""
    dying = HolderSpec(model=SHAPE, site=site, fault=Fault("ended", 20))
    spec = SinkSpec(model=SHAPE, site=site)
    with fleet(spec) as (sink,), holders(HolderSpec(model=SHAPE, site=site), dying) as running:
        report = joiner(running, tmp_path, READ).update("v2", [sink.address])
        whole = sum(tensor.nbytes for tensor in weights(2, **SHAPE).values())
        assert report.plan.manifest.nbytes + sum(run.nbytes for run in report.plan.manifest.present) == whole
        assert 0 < report.plan.manifest.nbytes < 0.7 * whole
        assert sink.state().holds(weights(2, **SHAPE))


def test_given_one_holder_when_it_dies_half_way_then_the_engine_does_not_serve_a_mix(site: str, tmp_path: Path) -> None:
    """Given one holder, when it dies half-way, then the update fails, says so, and another holder heals the engine."""
    dying = HolderSpec(model=SHAPE, site=site, fault=Fault("ended", 8))
    with fleet(SinkSpec(model=SHAPE, site=site)) as (sink,):
        with holders(dying) as running, pytest.raises(TaintedError, match="holder of v2") as caught:
            joiner(running, tmp_path, READ).update("v2", [sink.address])
        assert "every holder has left" in str(caught.value)
        state = sink.state()
        assert (state.version, state.served) == ("v1", "TaintedError")
        with holders(HolderSpec(model=SHAPE, site=site)) as running:
            joiner(running, tmp_path, READ).update("v2", [sink.address])
        assert sink.state().holds(weights(2, **SHAPE))


def test_given_two_engines_when_both_die_then_the_update_ends_and_names_them(site: str, tmp_path: Path) -> None:
    dying = SinkSpec(model=SHAPE, site=site, fault=Fault("load", 3))
    with fleet(dying, dying) as sinks, holders(HolderSpec(model=SHAPE, site=site)) as running:
        with pytest.raises(UpdateAbortedError, match=r"sink \d"):
            joiner(running, tmp_path, READ).update("v2", [sink.address for sink in sinks])
        assert all(sink.dies() for sink in sinks)


def test_given_an_engine_whose_loader_fails_then_it_leaves_and_is_tainted(site: str, tmp_path: Path) -> None:
    """Given a loader that raises, then that engine refuses to serve, and the other one joins."""
    failing = SinkSpec(model=SHAPE, site=site, fault=Fault("load", 4, "raise"))
    with (
        fleet(SinkSpec(model=SHAPE, site=site), failing) as sinks,
        holders(HolderSpec(model=SHAPE, site=site)) as running,
    ):
        report = joiner(running, tmp_path, READ).update("v2", [sink.address for sink in sinks])
        assert ["injected into load" in who for who in report.left.values()] == [True], report.left
        assert sinks[0].state().holds(weights(2, **SHAPE))
        assert sinks[1].state().served == "TaintedError"


def test_given_ranks_of_one_engine_then_they_join_together_or_not_at_all(site: str, tmp_path: Path) -> None:
    """Given a tensor-parallel engine one rank of which dies early, then its other rank serves what it did before."""
    other = SinkSpec(model=SHAPE, site=site)
    rank = SinkSpec(model=SHAPE, site=site, engine="pair")
    dying = SinkSpec(model=SHAPE, site=site, engine="pair", fault=Fault("open"))
    with fleet(other, rank, dying) as sinks, holders(HolderSpec(model=SHAPE, site=site)) as running:
        report = joiner(running, tmp_path, READ).update("v2", [sink.address for sink in sinks])
        assert len(report.left) == 2, report.left
        assert sinks[0].state().holds(weights(2, **SHAPE))
        state = sinks[1].wait_until(lambda state: not state.served)
        assert state.version == "v1"
        assert state.holds(weights(1, **SHAPE))


def test_given_a_server_that_updates_by_p2p_when_a_sink_dies_then_the_server_lives(site: str) -> None:
    """Given a server that is itself the source, when a sink dies, then the other sink gets the rest."""
    dying = SinkSpec(model=SHAPE, site=site, fault=Fault("load", 5))
    config = Config.load(transport=f"{READ}-chain", **SMALL)
    with fleet(dying, SinkSpec(model=SHAPE, site=site)) as sinks, ParameterServer(config) as server:
        server.register("v2", tensors=weights(2, **SHAPE))
        report = server.update_p2p("v2", [sink.address for sink in sinks], ranks=[0, 1])
        assert report is not None
        assert ["sink 0" in who for who in report.left.values()] == [True], report.left
        assert sinks[1].state().holds(weights(2, **SHAPE))
        server.register("v3", tensors=weights(3, **SHAPE))
        server.update_p2p("v3", [sinks[1].address])
        assert sinks[1].state().holds(weights(3, **SHAPE))


@pytest.mark.parametrize("transport", ["gloo", "gloo-chain"])
def test_given_sources_that_share_a_version_when_a_sink_dies_then_both_go_on(transport: str) -> None:
    """Given two source ranks with half the tensors each, when a sink dies, then both go on for the other one."""
    dying = SinkSpec(model=SHAPE, fault=Fault("load", 5))
    with fleet(dying, SinkSpec(model=SHAPE)) as sinks:
        addresses = [sink.address for sink in sinks]
        settings = {"transport": transport, "coordinator": addresses[0] + "-coordinator", **SMALL}
        sources = [
            SourceProcess(addresses, settings=settings, rank=rank, world_size=2, shape=SHAPE, ranks=[0, 1])
            for rank in (0, 1)
        ]
        assert [source.outcome() for source in sources] == ["", ""]
        assert sinks[1].state().holds(weights(2, **SHAPE))


def test_given_a_source_that_alone_had_its_tensors_when_it_dies_then_the_update_fails_and_names_one() -> None:
    """Given two source ranks with half the tensors each, when one dies, then the update fails and names a tensor."""
    with fleet(SinkSpec(model=SHAPE)) as (sink,):
        settings = {"transport": "gloo", "coordinator": sink.address + "-coordinator", **SMALL}
        faults = (None, Fault("run"))
        sources = [
            SourceProcess(
                [sink.address], settings=settings, rank=rank, world_size=2, shape=SHAPE, ranks=[0], fault=fault
            )
            for rank, fault in enumerate(faults)
        ]
        outcomes = [source.outcome() for source in sources]
        assert "nobody holds" in outcomes[0]
        assert outcomes[1] == "killed"
        state = sink.state()
        assert state.served == "TaintedError" or state.holds(weights(1, **SHAPE))


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_given_random_deaths_then_the_others_end_with_every_byte_or_none_serves_a_mix(
    site: str, tmp_path: Path, seed: int
) -> None:
    """Given random deaths among three holders and three engines, then who survives holds v2, or v1, or refuses."""
    chance = random.Random(seed)
    places = ["propose", "open", "connect", "ended"]
    faults: list[Fault | None] = [None] * 6
    for victim in chance.sample(range(6), chance.randint(1, 3)):
        where = chance.choice(places if victim < 3 else [*places, "load", "load", "hold", "advance", "finish"])
        faults[victim] = Fault(where, 1 if where not in ("ended", "load") else chance.randint(1, 25))
    names = [*over_the_network(), "gloo", READ, SOCKETS]
    transport = chance.choice([name + chain for name in names for chain in ("", "-chain")])
    specs = [SinkSpec(model=SHAPE, site=site, fault=fault) for fault in faults[3:]]
    held = [HolderSpec(model=SHAPE, site=site, fault=fault) for fault in faults[:3]]
    with fleet(*specs) as sinks, holders(*held) as running:
        error: UpdateError | None = None
        try:
            joiner(running, tmp_path, transport).update("v2", [sink.address for sink in sinks])
        except UpdateError as raised:
            error = raised
        survivors = [sink for sink, spec in zip(sinks, specs, strict=True) if spec.fault is None]
        holders_left = [holder for holder, spec in zip(running, held, strict=True) if spec.fault is None]
        if survivors and holders_left:
            assert error is None, f"{transport}, {faults}: {error}"
        for sink in survivors:
            state = sink.state()
            if error is None:
                assert (state.version, state.tainted, state.served) == ("v2", "", ""), faults
                assert state.holds(weights(2, **SHAPE)), faults
            else:
                assert state.served == "TaintedError" or state.holds(weights(1, **SHAPE)), faults
