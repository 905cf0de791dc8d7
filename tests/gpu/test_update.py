"""Given engines on a GPU, when weights are updated, then they are exact, and a failure leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import TaintedError
from ckpt_transport.planning import RingUse
from ckpt_transport_torch import Loader
from tests.fleet import SinkSpec, SourceProcess, by_name, fleet, weights
from tests.gpu.test_conformance import NCCL_SHARES_A_GPU, needs_nccl
from tests.injection import Fault
from tests.leftovers import left_behind
from tests.patience import SWIFT

MIB = 1 << 20
SLACK = 32 * MIB
"""What CUDA itself may keep of a process that has ended, or take for its bookkeeping."""
GROWTH = MIB
"""What a driver may take once, for streams and events; less than what fifty updates could each leave behind."""
ON_GPU = {"device": "cuda"}
nccl = pytest.param("nccl", marks=needs_nccl)
TRANSPORTS = ["cuda_ipc", nccl, "shm", "gloo"]


def used() -> int:
    """Bytes of the GPU that somebody uses, without what torch keeps here for later."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


@pytest.fixture(scope="module", autouse=True)
def _everything_loaded() -> None:
    """CUDA and NCCL load their kernels into a process when they are first used there, and keep them."""
    with fleet(SinkSpec(ON_GPU)) as (sink,):
        for transport in ("cuda_ipc", "shm", "gloo", *(["nccl"] if NCCL_SHARES_A_GPU else [])):
            with ParameterServer(swift(transport=transport)) as server:
                server.register("v2", tensors=weights(2))
                server.update("v2", [sink.address])


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    before = used()
    yield
    assert not left_behind()
    deadline = time.monotonic() + 10
    while used() > before + SLACK:
        assert time.monotonic() < deadline, f"{used() - before:,} bytes of GPU memory were left behind"
        time.sleep(0.1)


def swift(**settings: Any) -> Config:
    return Config.load(**{**SWIFT, "heartbeat_timeout": 5.0, **settings})


@pytest.mark.parametrize("sinks", [1, 3])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_an_update_on_gpus_then_every_rank_holds_the_new_version_bit_by_bit(transport: str, sinks: int) -> None:
    shape: dict[str, Any] = {"width": 1024}
    with (
        fleet(*[SinkSpec({**shape, **ON_GPU})] * sinks) as running,
        ParameterServer(swift(transport=transport)) as server,
    ):
        for seed in (2, 3):
            server.register(f"v{seed}", tensors=weights(seed, **shape))
            report = server.update(f"v{seed}", [sink.address for sink in running])
            assert report is not None
            assert [route.transport for route in report.plan.routes] == [transport]
            for sink in running:
                state = sink.state()
                assert state.holds(weights(seed, **shape))
                assert (state.version, state.tainted, state.served) == (f"v{seed}", "", "")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_weights_on_a_trainers_gpu_then_they_are_handed_over_where_they_lie(transport: str) -> None:
    """Given tensors on the GPU that are lent, when they are sent in small slots, then no pool is made of them."""
    shape: dict[str, Any] = {"width": 1024}
    settings = swift(transport=transport, bucket_bytes="1MiB", ring_depth=2)
    with fleet(*[SinkSpec({**shape, **ON_GPU})] * 2) as sinks, ParameterServer(settings) as server:
        for seed in (2, 3):
            stored = server.lend(f"v{seed}", weights(seed, **shape, **ON_GPU))
            assert stored.buffers == ()
            server.update(f"v{seed}", [sink.address for sink in sinks])
            assert all(sink.state().holds(weights(seed, **shape)) for sink in sinks)


WHERE = [
    pytest.param(("near", "far"), (0, 0), marks=needs_nccl, id="hosts that share a GPU"),
    pytest.param(
        ("near", "near"),
        (0, 1),
        marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
        id="GPUs of one host",
    ),
]


@pytest.mark.parametrize(("hosts", "gpus"), WHERE)
def test_given_sources_on_several_gpus_then_they_broadcast_to_each_other_and_pass_on_to_the_workers_beside_them(
    hosts: tuple[str, str], gpus: tuple[int, int]
) -> None:
    """Given a source and workers at each of two places, then nccl and cuda_ipc carry one plan to all of them."""
    shape: dict[str, Any] = {"width": 512}
    places = [(hosts[0], gpus[0]), (hosts[1], gpus[1]), (hosts[1], gpus[1])]
    specs = [SinkSpec({**shape, "device": f"cuda:{gpu}"}, {"host": host}) for host, gpu in places]
    with fleet(*specs) as sinks:
        addresses = [sink.address for sink in sinks]
        settings = {
            "transport": "nccl+cuda_ipc",
            "coordinator": addresses[0] + "-coordinator",
            "bucket_bytes": "256KiB",
            "heartbeat_timeout": 5.0,
        }
        sources = [
            SourceProcess(
                addresses,
                settings={**settings, "host": hosts[rank]},
                rank=rank,
                world_size=2,
                shape=shape,
                gpu=gpus[rank],
            )
            for rank in (0, 1)
        ]
        assert [source.outcome() for source in sources] == ["", ""]
        for sink in sinks:
            assert sink.state().holds(weights(2, **shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("transport", ["cuda_ipc", "shm"])
def test_given_every_dtype_on_a_gpu_then_each_arrives_as_it_was(transport: str, dtype: torch.dtype) -> None:
    shape: dict[str, Any] = {"dtype": dtype}
    with fleet(SinkSpec({**shape, **ON_GPU})) as (sink,), ParameterServer(swift(transport=transport)) as server:
        server.register("v2", tensors=weights(2, **shape))
        server.update("v2", [sink.address])
        assert sink.state().holds(weights(2, **shape))


@pytest.mark.parametrize("loader", [None, by_name], ids=["in pieces", "whole"])
@pytest.mark.parametrize("transport", ["cuda_ipc", nccl])
def test_given_tensors_larger_than_a_bucket_on_a_gpu_then_they_arrive(
    transport: str, loader: Callable[[torch.nn.Module], Loader] | None
) -> None:
    settings = swift(transport=transport, bucket_bytes="100KiB", ring_depth=2)
    with fleet(SinkSpec(ON_GPU, loader=loader)) as (sink,), ParameterServer(settings) as server:
        server.register("v2", tensors=weights(2))
        report = server.update("v2", [sink.address])
        assert report is not None
        ring = report.plan.ring(0, RingUse.FILL)
        assert ring is not None
        assert (ring.slot_bytes < 256 * 256 * 4) == (loader is None)
        assert sink.state().holds(weights(2))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_a_sink_on_a_gpu_that_is_killed_then_it_is_named_and_the_next_update_works(transport: str) -> None:
    fault = Fault("load", count=2)
    settings = swift(transport=transport, bucket_bytes="256KiB")
    with fleet(SinkSpec(ON_GPU), SinkSpec(ON_GPU, fault=fault)) as (other, victim), ParameterServer(settings) as server:
        server.register("v2", tensors=weights(2))
        with pytest.raises(TaintedError, match=r"rank 2 \(sink 1"):
            server.update("v2", [other.address, victim.address])
        assert victim.dies()
        server.update("v2", [other.address])
        assert other.state().holds(weights(2))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_given_a_source_on_a_gpu_that_is_killed_then_the_next_source_brings_the_sink_back(transport: str) -> None:
    with fleet(SinkSpec(ON_GPU, settings=SWIFT)) as (sink,):
        settings = {"transport": transport, "bucket_bytes": "256KiB"}
        assert SourceProcess([sink.address], settings=settings, fault=Fault("sent", count=2)).outcome() == "killed"
        sink.wait_until(lambda state: bool(state.tainted))
        with ParameterServer(swift(transport=transport)) as server:
            server.register("v3", tensors=weights(3))
            server.update("v3", [sink.address])
        assert sink.state().holds(weights(3))


@pytest.mark.parametrize("transport", ["cuda_ipc", nccl, "shm"])
def test_given_fifty_updates_then_they_take_no_more_memory_than_five(transport: str) -> None:
    with fleet(SinkSpec(ON_GPU)) as (sink,), ParameterServer(swift(transport=transport)) as server:
        for seed in (2, 3):
            server.register(f"v{seed}", tensors=weights(seed))
        for _ in range(5):
            server.update("v3", [sink.address])
        before = used()
        for turn in range(50):
            server.update(f"v{2 + turn % 2}", [sink.address])
        assert used() <= before + GROWTH
        assert sink.state().holds(weights(3))


def test_given_two_versions_of_one_process_then_they_share_the_gpu_without_ipc() -> None:
    """Given source and sink in one process, then its own allocations are used where they lie."""
    from ckpt_transport_torch import attach
    from tests.fleet import model

    serving = attach(model(1, device="cuda"))
    with serving, ParameterServer(swift(transport="cuda_ipc")) as server:
        server.register("v2", tensors=weights(2))
        server.update("v2", [serving.address])
        assert serving.version == "v2"
