"""The planner learns from introductions what was measured on each host."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from ckpt_transport.config import Config
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import Extent, Manifest, PlacedTensor, Role, Settings, TensorSpec
from ckpt_transport.rates import HostLink, HostRates, LinkKind, LinkRate, keep
from ckpt_transport.transports.interface import Availability
from ckpt_transport.update.introduction import Introducer, rates_of, topology_of
from ckpt_transport.update.messages import Join
from ckpt_transport.update.plan_cache import PlanCache
from ckpt_transport_shm import ShmTransport

NBYTES = 1 << 20
SHARD = Manifest(
    "one", (Extent(0, NBYTES, MemoryKind.SHARED),), (PlacedTensor(TensorSpec("w", "U8", (NBYTES,)), 0, 0, NBYTES),)
)


def rates(memory: float) -> HostRates:
    return HostRates((LinkRate(HostLink(LinkKind.MEMORY), memory),))


def introduced(host: str) -> Join:
    """How a source on that host introduces itself."""
    states = {"shm": Availability(True)}
    return Introducer(Config(host=host, memory_budget=1 << 30)).of_source("source", SHARD, states, (), PlanCache(1))


def test_given_rates_that_are_kept_then_each_introduction_carries_them_and_the_first_of_a_host_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    unknown = introduced("a")
    assert unknown.rates is None
    keep(rates(1e9))
    first, elsewhere = introduced("a"), introduced("b")
    keep(rates(2e9))
    assert rates_of([unknown, first, elsewhere, introduced("a")]) == {"a": rates(1e9), "b": rates(1e9)}


def test_given_a_host_that_is_measured_between_two_updates_then_the_second_is_planned_anew_and_predicted_by_it() -> (
    None
):
    joins = [introduced("a"), replace(introduced("a"), role=Role.SINK, manifest=None)]
    topology, known = topology_of(joins), {"shm": ShmTransport.traits}
    plans = PlanCache(1 << 30)
    assumed = plans.make([SHARD], topology, known, Settings())
    assert not assumed.prediction.measured
    measured = plans.make([SHARD], topology, known, Settings(), rates={"a": rates(1e6)})
    assert measured.prediction.measured
    assert measured.prediction.seconds > 1 > assumed.prediction.seconds
    again = plans.make([SHARD], topology, known, Settings(), rates={"a": rates(1e6)})
    assert again is measured
