"""On a GPU the digest is that of a CPU, and a transport that gives wrong bytes makes no update that succeeds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ckpt_transport import ParameterServer
from ckpt_transport.errors import TaintedError
from ckpt_transport.memory import fence_on
from ckpt_transport.memory.device_digest import add_by_kernel, add_by_torch, digest_on_device
from ckpt_transport.memory.digest import as_bytes, digest
from ckpt_transport.memory.digest_pages import PAGE_BYTES, page_count
from ckpt_transport.memory.launch import has_kernels
from ckpt_transport.transports import Poll
from ckpt_transport.transports.interface import Control, Endpoint, Group
from ckpt_transport_cuda_ipc import CudaIpcTransport
from ckpt_transport_nccl import NcclTransport
from ckpt_transport_nccl.plugin import NcclEndpoint
from tests.corrupting import Wrong, make_site, spoiled
from tests.fleet import SinkSpec, fleet, weights
from tests.gpu.test_conformance import needs_nccl
from tests.gpu.test_update import ON_GPU, swift
from tests.site import use

GPU = torch.device("cuda", 0)
SIZES = [1, 7, 8, 4096, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 9, 70 * PAGE_BYTES + 12_345]
CYCLES = 50_000_000
"""About 25 milliseconds."""

FlipIpc = spoiled(CudaIpcTransport, Wrong.FLIP)


class _FlipNccl(NcclEndpoint):
    """The third broadcast that arrives has a wrong bit, in the order of the device."""

    arrived = 0

    def _broadcast(self, tensor: torch.Tensor, root: int) -> Poll:
        ended = super()._broadcast(tensor, root)
        if root == self.group.rank or tensor.numel() == 1:
            return ended
        self.arrived += 1
        if self.arrived != 3:
            return ended
        with torch.cuda.stream(self.stream):
            tensor[tensor.numel() // 2] ^= 4
        flipped = self._last = fence_on(self.stream)
        return lambda: ended() and flipped.query()


class FlipNccl(NcclTransport):
    name = "flip_nccl"

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        return _FlipNccl(group, control, timeout)


def some(nbytes: int) -> torch.Tensor:
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8)


@pytest.mark.skipif(not has_kernels(), reason="needs Triton")
@pytest.mark.parametrize("offset", [0, 256, 3])
@pytest.mark.parametrize("nbytes", SIZES)
def test_given_bytes_on_a_gpu_then_the_kernel_gives_what_a_cpu_gives(nbytes: int, offset: int) -> None:
    raw = some(offset + nbytes)
    runs = raw[offset:], raw[: nbytes // 2]
    near = raw.to(GPU)
    assert as_bytes(digest([near[offset:], near[: nbytes // 2]])) == as_bytes(digest(runs))


@pytest.mark.parametrize("nbytes", SIZES)
def test_given_bytes_on_a_gpu_then_operations_of_torch_give_what_a_cpu_gives(nbytes: int) -> None:
    runs = some(nbytes), some(nbytes // 3)
    sums, first = torch.zeros(2, dtype=torch.int64, device=GPU), 0
    for run in runs:
        add_by_torch(sums, run.to(GPU), first)
        first += page_count(run.numel())
    assert as_bytes(sums) == as_bytes(digest(runs))


@pytest.mark.skipif(not has_kernels(), reason="needs Triton")
def test_given_a_compiled_kernel_then_it_takes_runs_of_other_lengths_and_numbers() -> None:
    for nbytes, first in ((PAGE_BYTES, 0), (5, 70_000), (3 * PAGE_BYTES + 1, 1), (0, 0)):
        raw = some(nbytes)
        found, expected = torch.zeros(2, dtype=torch.int64, device=GPU), torch.zeros(2, dtype=torch.int64)
        add_by_kernel(found, raw.to(GPU), first)
        add_by_torch(expected, raw, first)
        assert as_bytes(found) == as_bytes(expected)


def test_given_a_busy_stream_then_a_digest_is_computed_in_its_order_and_waits_for_nothing() -> None:
    old, new = some(8 * PAGE_BYTES), some(8 * PAGE_BYTES)
    raw, later = old.to(GPU), new.to(GPU)
    digest_on_device([raw])
    torch.cuda.synchronize()
    torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]
    before = digest_on_device([raw])
    raw.copy_(later)
    after = digest_on_device([raw])
    assert not torch.cuda.current_stream().query(), "it has waited for the device"
    assert (as_bytes(before), as_bytes(after)) == (as_bytes(digest([old])), as_bytes(digest([new])))


@pytest.mark.parametrize(
    "transport", ["flip_cuda_ipc", "flip_shm", "swap_gloo", pytest.param("flip_nccl", marks=needs_nccl)]
)
@pytest.mark.parametrize("lends", [False, True])
def test_given_wrong_bytes_when_engines_on_gpus_are_updated_then_the_update_fails_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str, lends: bool
) -> None:
    """Given versions in host memory and on the trainer's GPU, then wrong bytes taint, and right ones mend.

    What is read where it lies comes in longer buckets, and the first two of each sink are right.
    """
    others = {"flip_nccl": f"{__name__}:FlipNccl", "flip_cuda_ipc": f"{__name__}:FlipIpc"}
    site = make_site(tmp_path / "site", others)
    monkeypatch.syspath_prepend(site)
    use(site)
    sink = SinkSpec(ON_GPU, site=site)
    settings = {"bucket_bytes": "4KiB" if lends else "64KiB", "ring_depth": 2}
    with fleet(sink, sink) as sinks:
        addresses = [sink.address for sink in sinks]
        with ParameterServer(swift(transport=transport, **settings)) as server:
            if lends:
                server.lend("v2", weights(2, **ON_GPU))
            else:
                server.register("v2", tensors=weights(2))
            with pytest.raises(TaintedError, match=f"got bytes of .* by '{transport}' from rank 0"):
                server.update("v2", addresses)
        with ParameterServer(swift(transport=transport.partition("_")[2], **settings)) as server:
            server.register("v3", tensors=weights(3))
            server.update("v3", addresses)
        assert all(sink.state().holds(weights(3)) for sink in sinks)
