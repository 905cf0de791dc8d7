"""On a GPU a version is staged beside what is served, exchanged with it in one launch, and taken back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ckpt_transport import Config, ParameterServer
from ckpt_transport.engine import StagingArea
from ckpt_transport.engine.shadows import MakeShadows, on_device, on_host
from ckpt_transport.memory import beside
from ckpt_transport.memory.launch import has_kernels
from tests.fleet import SinkProcess, SinkSpec, by_name, fleet, weights
from tests.gpu.test_copy_table import kernels_of
from tests.patience import PATIENT

SHAPE: dict[str, Any] = {"layers": 8, "width": 512, "device": "cuda"}
PLENTY = 30 << 30


@pytest.mark.skipif(not has_kernels(), reason="needs Triton")
def test_given_tensors_of_odd_sizes_when_exchanged_then_it_is_one_launch_and_twice_changes_nothing() -> None:
    sizes = [1, 3, 8, 1000, 4097, (1 << 20) + 5]
    served = {str(n): torch.randint(256, (n,), dtype=torch.uint8, device="cuda") for n in sizes}
    before = {name: tensor.clone() for name, tensor in served.items()}
    area = StagingArea(served)
    for tensor in area.tensors.values():
        tensor.bitwise_not_()
    area.exchange(served)
    assert all(torch.equal(tensor, ~before[name]) for name, tensor in served.items())
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as trace:
        area.exchange(served)
    assert len(kernels_of(trace)) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in served.items())


@pytest.mark.parametrize("make", [on_device, on_host])
def test_given_a_weight_that_kernels_read_transposed_then_it_is_staged_in_the_order_of_its_memory(
    make: MakeShadows,
) -> None:
    served = {"weight": torch.randn(384, 512, device="cuda").t()}
    before = served["weight"].clone()
    area = StagingArea(served, make)
    assert area.tensors["weight"].stride() == served["weight"].stride()
    area.tensors["weight"].copy_(torch.arange(384 * 512.0).view(512, 384))
    area.exchange(served)
    assert torch.equal(served["weight"].cpu(), torch.arange(384 * 512.0).view(512, 384))
    area.exchange(served)
    assert torch.equal(served["weight"], before)


def test_given_work_beside_then_it_has_a_stream_of_its_own_and_has_ended_when_it_returns() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    source = torch.randint(256, (64 << 20,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> torch.cuda.Stream:
        target.copy_(source, non_blocking=True)
        return torch.cuda.current_stream(device)

    stream = beside(device, "staging", copy)
    assert stream.query()
    assert stream != torch.cuda.current_stream(device)
    assert stream == beside(device, "staging", copy)
    assert torch.equal(target, source)


@pytest.mark.parametrize("budget", ["1GiB", "1KiB"], ids=["on the GPU", "on the host"])
@pytest.mark.parametrize("transport", ["cuda_ipc", "shm"])
@pytest.mark.parametrize("loader", [None, by_name], ids=["by name", "by a loader"])
def test_given_sinks_on_a_gpu_when_staged_and_rolled_back_then_each_serves_that_version(
    transport: str, budget: str, loader: Any
) -> None:
    """The first update is in place: a loader is recorded, and what it has written is served."""
    spec = SinkSpec(SHAPE, settings={"staging_budget": budget}, loader=loader)
    with fleet(spec, spec) as sinks:
        addresses = [sink.address for sink in sinks]
        with ParameterServer(Config.load(transport=transport, commit="in_place", **PATIENT)) as server:
            server.register("v1", tensors=weights(1, **SHAPE))
            server.update("v1", addresses)
        _stage_and_roll_back(sinks, addresses, Config.load(transport=transport, commit="staged", **PATIENT))


def _stage_and_roll_back(sinks: Sequence[SinkProcess], addresses: Sequence[str], config: Config) -> None:
    with ParameterServer(config) as server:
        for seed in (2, 3):
            server.register(f"v{seed}", tensors=weights(seed, **SHAPE))
            report = server.update(f"v{seed}", addresses)
            assert report is not None
            assert report.staged, report.in_place
            assert all(sink.state().holds(weights(seed, **{**SHAPE, "device": "cpu"})) for sink in sinks)
        assert server.rollback(addresses).version == "v2"
        assert all(sink.state().holds(weights(2, **{**SHAPE, "device": "cpu"})) for sink in sinks)


@pytest.mark.parametrize("make", [on_device, on_host])
def test_given_twelve_gigabytes_when_exchanged_then_it_is_said_how_long_that_takes(make: MakeShadows) -> None:
    """A figure to read, which decides nothing."""
    if torch.cuda.mem_get_info()[0] < PLENTY:
        pytest.skip("needs 30 GiB of free memory of a GPU")
    served = {str(n): torch.randint(256, (12 << 20,), dtype=torch.uint8, device="cuda") for n in range(1000)}
    before = served["7"].clone()
    area = StagingArea(served, make)
    area.tensors["7"].bitwise_not_()
    seconds = []
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        area.exchange(served)
        seconds.append(time.perf_counter() - began)
    assert torch.equal(served["7"], ~before)
    print(f"{make.__name__}: exchange of {area.nbytes / 1e9:.1f} GB in {sorted(seconds)[2] * 1e3:.1f} ms")
