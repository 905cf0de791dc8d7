"""Engines that join: brought to a version by those who hold it, while the fleet serves."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_transport import Config, Holder, Joiner, ParameterServer, Report
from ckpt_transport.planning import Role, StageKind
from ckpt_transport_torch import Loader, attach
from tests.fleet import HolderProcess, HolderSpec, SinkSpec, by_name, fleet, holders, model, weights
from tests.patience import DEADLINE, PATIENT
from tests.site import READ, SOCKETS
from tests.support.transports import over_the_network

SHAPE = {"layers": 8, "width": 384}
SMALL: dict[str, Any] = {"bucket_bytes": "96KiB", "ring_depth": 3}

pytestmark = pytest.mark.usefixtures("dead_are_swept")


def files(running: list[HolderProcess], folder: Path) -> list[Path]:
    return [holder.save(folder / f"metas-{number}.json") for number, holder in enumerate(running)]


def read_from(report: Report) -> Counter[int]:
    """Bytes that sinks have received, by the source that owns them; as it happened, not as it was planned."""
    sinks = {p.rank for p in report.plan.topology.participants if p.role is Role.SINK}
    found: Counter[int] = Counter()
    for event in report.timeline:
        if event.kind is StageKind.APPLY and event.rank in sinks:
            bucket = report.plan.buckets[event.bucket]
            found[report.plan.owner(bucket)] += sum(piece.nbytes for piece in bucket.pieces)
    return found


WITHOUT_PLUGINS = ["gloo", "shm", "gloo-chain", READ, f"{READ}-chain", f"{SOCKETS}-chain"]
INSTALLED = [f"{name}-chain" for name in over_the_network() if f"{name}-chain" not in WITHOUT_PLUGINS]
"""Lines over whatever is available here between hosts."""


@pytest.mark.parametrize("transport", [*WITHOUT_PLUGINS, *INSTALLED])
def test_given_a_fleet_and_a_holder_when_three_engines_join_then_the_fleet_is_not_touched(
    site: str, tmp_path: Path, transport: str
) -> None:
    """Given a fleet and a holder, when engines join, then they hold its version, and the fleet what it held."""
    spec = SinkSpec(model=SHAPE, site=site)
    with fleet(spec, spec, spec, spec) as (old, *new), holders(HolderSpec(model=SHAPE, site=site)) as running:
        config = Config.load(transport=transport, **SMALL, **PATIENT)
        report = Joiner(files(running, tmp_path), config).update("v2", [sink.address for sink in new])
        assert (report.left, report.lost) == ({}, ())
        for sink in new:
            state = sink.state()
            assert (state.version, state.tainted, state.served) == ("v2", "", "")
            assert state.holds(weights(2, **SHAPE))
        state = old.state()
        assert (state.version, state.served) == ("v1", "")
        assert state.holds(weights(1, **SHAPE))


@pytest.mark.parametrize("transport", ["gloo", READ])
@pytest.mark.parametrize("loader", [None, by_name])
def test_given_three_holders_when_an_engine_joins_then_it_reads_as_much_from_each(
    site: str, tmp_path: Path, transport: str, loader: Callable[[torch.nn.Module], Loader] | None
) -> None:
    """Given three holders of one version, when an engine joins, then each sends a third, within a tenth."""
    shape = {"layers": 24, "width": 192}
    spec = SinkSpec(model=shape, site=site, loader=loader)
    with fleet(spec) as (sink,), holders(*[HolderSpec(model=shape, site=site)] * 3) as running:
        config = Config.load(transport=transport, **SMALL, **PATIENT)
        report = Joiner(files(running, tmp_path), config).update("v2", [sink.address])
        assert sink.state().holds(weights(2, **shape))
        sent = read_from(report)
        fair = sum(sent.values()) / 3
        assert len(sent) == 3
        assert all(abs(nbytes - fair) <= 0.1 * fair for nbytes in sent.values())


def test_given_a_holder_then_it_serves_one_engine_after_another(site: str, tmp_path: Path) -> None:
    """Given a holder, when engines join at different times and from different commands, then it serves them all."""
    spec = SinkSpec(model=SHAPE, site=site)
    with fleet(spec, spec) as sinks, holders(HolderSpec(model=SHAPE, site=site)) as running:
        paths = files(running, tmp_path)
        for sink in sinks:
            Joiner(paths, Config.load(transport=READ, **SMALL, **PATIENT)).update("v2", [sink.address])
            assert sink.state().holds(weights(2, **SHAPE))


def test_given_three_sinks_when_two_are_updated_by_p2p_then_the_third_serves_on_as_it_was(site: str) -> None:
    """Given three sinks, when ranks 0 and 2 are updated by P2P, then rank 1 serves on as it was."""
    spec = SinkSpec(model=SHAPE, site=site)
    config = Config.load(transport=f"{READ}-chain", **SMALL, **PATIENT)
    with fleet(spec, spec, spec) as sinks, ParameterServer(config) as server:
        addresses = [sink.address for sink in sinks]
        for seed in (2, 3):
            server.register(f"v{seed}", tensors=weights(seed, **SHAPE))
            server.update_p2p(f"v{seed}", addresses, ranks=[0, 2])
            assert [sink.state().version for sink in sinks] == [f"v{seed}", "v1", f"v{seed}"]
            assert sinks[0].state().holds(weights(seed, **SHAPE))
            assert sinks[2].state().holds(weights(seed, **SHAPE))
            assert sinks[1].state().holds(weights(1, **SHAPE))
        server.register("v4", tensors=weights(4, **SHAPE))
        server.update("v4", addresses)
        assert all(sink.state().holds(weights(4, **SHAPE)) for sink in sinks)


def test_given_a_holder_when_one_engine_after_the_other_joins_then_it_keeps_no_connection(tmp_path: Path) -> None:
    config = Config.load(transport="shm", **PATIENT)
    with Holder("v2", tensors=weights(2), config=config) as holder:
        holder.start()
        holder.address_file.save(tmp_path / "metas.json", config)
        for _ in range(3):
            with attach(model(1), config=config) as engine:
                Joiner([tmp_path / "metas.json"], config).update("v2", [engine.address])
        deadline = time.monotonic() + DEADLINE
        while holder._mailbox._sockets.connections:
            assert time.monotonic() < deadline, holder._mailbox._sockets.connections._open
            time.sleep(0.05)
