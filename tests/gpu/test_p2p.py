"""The transports over transfer libraries with memory of GPUs: conformance, and updates of engines on a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from ckpt_transport import ParameterServer
from ckpt_transport.errors import TaintedError
from ckpt_transport.memory import MemoryKind, visible_devices
from ckpt_transport.memory.devices import HOST
from ckpt_transport.testing import CHECKS, Check
from ckpt_transport.transports import registry
from ckpt_transport.transports.interface import Control, Endpoint, Group, Transport
from tests.available import where_available
from tests.fleet import SinkSpec, fleet, weights
from tests.gpu.test_update import ON_GPU, swift
from tests.injection import Fault
from tests.leftovers import left_behind

NAMES = [where_available(name) for name in ("mooncake", "nixl", "ucx")]


class OnDevices(Transport):
    """Goes around a transport: some ranks of every route use this process's GPU, whatever the route says."""

    def __init__(self, name: str, ranks: tuple[int, ...]) -> None:
        super().__init__()
        self._inner, self._ranks = registry.make(name, {}), ranks
        self.name, self.traits = name, self._inner.traits  # type: ignore[misc]

    @classmethod
    def probe(cls) -> Any:
        raise NotImplementedError("ask the transport inside")

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        gpu = visible_devices()[0]
        devices = tuple(gpu if rank in self._ranks else HOST for rank in group.ranks)
        return self._inner.open(dataclasses.replace(group, devices=devices), control, timeout)


@dataclasses.dataclass(frozen=True)
class Factory:
    """Makes one in every process of a check."""

    name: str
    ranks: tuple[int, ...]

    def __call__(self) -> Transport:
        return OnDevices(self.name, self.ranks)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    yield
    assert not left_behind()


@pytest.mark.parametrize(
    "check", [check for check in CHECKS if check.name != "probe_is_cheap"], ids=lambda check: check.name
)
@pytest.mark.parametrize("ranks", [(1, 2), (0, 1, 2)], ids=["host to GPU", "GPU to GPU"])
@pytest.mark.parametrize("name", NAMES)
def test_given_a_p2p_transport_between_gpu_processes_then_it_keeps_every_promise(
    name: str, ranks: tuple[int, ...], check: Check
) -> None:
    check(Factory(name, ranks))


@pytest.mark.parametrize("ranks", [(1,), (0, 1)], ids=["host to GPU", "GPU to GPU"])
@pytest.mark.parametrize("name", NAMES)
def test_given_a_rank_on_a_gpu_then_memory_is_allocated_where_it_is(name: str, ranks: tuple[int, ...]) -> None:
    """Given a member with a GPU, then what its endpoint allocates to receive into is on it, if its library can."""
    from ckpt_transport.testing import launch

    outcomes = launch(kinds_of_memory, 2, name, ranks, deadline=60)
    assert all(outcome.ok for outcome in outcomes), outcomes
    kinds = [outcome.value for outcome in outcomes]
    assert kinds == [str(MemoryKind.CUDA if rank in ranks else MemoryKind.PRIVATE) for rank in (0, 1)]


def kinds_of_memory(context: Any, name: str, ranks: tuple[int, ...]) -> str:
    """The kind of memory that this rank's endpoint allocates and can register."""
    group = context.group("route")
    endpoint = OnDevices(name, ranks).open(group, context.control(group), 60.0)
    buffer = endpoint.allocate(1 << 20)
    endpoint.register(buffer).close()
    endpoint.close()
    return str(buffer.kind)


@pytest.mark.parametrize("sinks", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_given_an_update_by_p2p_on_gpus_then_every_rank_holds_the_new_version_bit_by_bit(name: str, sinks: int) -> None:
    """Given engines on a GPU and a source whose version is in host memory, then it is read from where it lies."""
    shape: dict[str, Any] = {"width": 1024}
    with (
        fleet(*[SinkSpec({**shape, **ON_GPU})] * sinks) as running,
        ParameterServer(swift(transport=name)) as server,
    ):
        for seed in (2, 3):
            server.register(f"v{seed}", tensors=weights(seed, **shape))
            report = server.update(f"v{seed}", [sink.address for sink in running])
            assert report is not None
            assert report.plan.buckets[0].fill_slot == -1
            for sink in running:
                state = sink.state()
                assert state.holds(weights(seed, **shape))
                assert (state.version, state.tainted, state.served) == (f"v{seed}", "", "")


@pytest.mark.parametrize("name", NAMES)
def test_given_a_sink_on_a_gpu_that_is_killed_then_it_is_named_and_the_next_update_by_p2p_works(name: str) -> None:
    settings = swift(transport=name, bucket_bytes="256KiB")
    victim_spec = SinkSpec(ON_GPU, fault=Fault("load", count=2))
    with fleet(SinkSpec(ON_GPU), victim_spec) as (other, victim), ParameterServer(settings) as server:
        server.register("v2", tensors=weights(2))
        with pytest.raises(TaintedError, match=r"rank 2 \(sink 1"):
            server.update("v2", [other.address, victim.address])
        assert victim.dies()
        server.update("v2", [other.address])
        assert other.state().holds(weights(2))
