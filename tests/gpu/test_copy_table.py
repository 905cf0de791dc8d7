"""On a GPU a copy table leaves what torch's copies leave, in one launch, from memory of either side of the link."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ckpt_transport import LoadedBucket
from ckpt_transport.memory import (
    Addresses,
    Buffer,
    CopyTable,
    ElementCopy,
    MemoryRun,
    Segment,
    StridedBytes,
    copy_table,
    reads_in_place,
)
from ckpt_transport.memory.copy_table import _launch_of
from ckpt_transport.memory.exchange import ByteExchange
from ckpt_transport.memory.launch import has_kernels
from ckpt_transport.planning import PlacedBytes
from ckpt_transport_torch import TorchEngine
from tests.unit.recorded import specs_of

pytestmark = pytest.mark.skipif(not has_kernels(), reason="needs Triton")
GPU = torch.device("cuda", 0)
DTYPES = [torch.uint8, torch.bfloat16, torch.float32, torch.float64]
PLENTY = 30 << 30
"""Bytes of a GPU on which tensors over 4 GiB are tried."""


def at(*tensors: torch.Tensor) -> Addresses:
    return Addresses(GPU, [tensor.data_ptr() for tensor in tensors])


def some(nbytes: int, device: torch.device = GPU) -> torch.Tensor:
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device=device)


def element_copy(source: int, read: torch.Tensor, target: int, write: torch.Tensor) -> ElementCopy:
    """A copy between views, from memories that begin where the views begin."""
    size = read.itemsize
    strides = [[stride * size for stride in view.stride()] for view in (read, write)]
    return ElementCopy(source, target, 0, 0, size, tuple(read.shape), *strides)


def table_of(reads: Sequence[torch.Tensor], writes: Sequence[torch.Tensor]) -> CopyTable:
    pairs = enumerate(zip(reads, writes, strict=True))
    return CopyTable(GPU, StridedBytes.of([element_copy(n, read, n, write) for n, (read, write) in pairs]))


def kernels_of(trace: profile) -> list[str]:
    """Names of the kernels and copies that a GPU ran."""
    events = trace.events()  # type: ignore[no-untyped-call]
    return [event.name for event in events if event.device_type.name == "CUDA"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [0, 8, 3])
def test_given_slices_transposes_and_odd_addresses_then_each_byte_is_right(dtype: torch.dtype, shift: int) -> None:
    size = torch.empty(0, dtype=dtype).itemsize
    raw = some(size * 300 * 500 + 16)[shift - shift % size :]
    matrix = raw[: size * 300 * 500].view(dtype).view(300, 500)
    reads = [matrix[:, 100:177], matrix[7:8], matrix.t(), matrix[::3, ::2], matrix.view(30, 10, 500).permute(1, 2, 0)]
    writes = [torch.zeros(read.numel() + 1, dtype=dtype, device=GPU)[1:].view(read.shape) for read in reads]
    table_of(reads, writes).copy(at(*reads), at(*writes))
    for read, write in zip(reads, writes, strict=True):
        assert torch.equal(write.contiguous().view(torch.uint8), read.contiguous().view(torch.uint8))


def test_given_runs_at_every_address_then_no_neighbour_is_touched() -> None:
    source, target = some(1 << 20), some(1 << 20)
    expected = target.clone()
    read, write, run = np.array([(9000 * n + n, 9000 * n + 3 * n, 4097 * (n % 3) + n) for n in range(100)]).T
    for first, second, nbytes in zip(read, write, run, strict=True):
        expected[second : second + nbytes] = source[first : first + nbytes]
    zero = np.zeros(100, np.int64)
    CopyTable(GPU, StridedBytes.contiguous(zero, zero, read, write, run)).copy(at(source), at(target))
    assert torch.equal(target, expected)


def test_given_page_locked_memory_then_it_is_read_where_it_lies() -> None:
    host = some((3 << 20) + 5, torch.device("cpu")).pin_memory()
    target = torch.zeros_like(host, device=GPU)
    table_of([host], [target]).copy(at(host), at(target))
    assert torch.equal(target.cpu(), host)


def test_given_a_segment_that_is_mapped_read_only_then_it_is_read_where_it_lies() -> None:
    raw = some((1 << 20) + 3, torch.device("cpu"))
    with closing(Segment.create(len(raw))) as own, closing(Segment.attach(own.name)) as mapped:
        own.tensor().copy_(raw)
        buffer = Buffer.of(mapped)
        assert buffer.pin()
        halves = [MemoryRun(0, buffer.tensor[: 1 << 19]), MemoryRun(1 << 19, buffer.tensor[1 << 19 :])]
        assert reads_in_place(GPU, halves)
        target = torch.zeros_like(raw, device=GPU)
        table_of([buffer.tensor], [target]).copy(at(buffer.tensor), at(target))
        assert torch.equal(target.cpu(), raw)


def test_given_memory_that_is_not_page_locked_then_it_is_not_read_where_it_lies() -> None:
    raw = some(1000, torch.device("cpu"))
    near = some(1000)
    assert not reads_in_place(GPU, [MemoryRun(0, near), MemoryRun(1000, raw)])
    assert reads_in_place(GPU, [MemoryRun(0, near), MemoryRun(1000, raw.pin_memory())])


def test_given_two_sides_then_they_are_exchanged_in_place() -> None:
    one, other = some(1_000_003), some(1_000_003)
    before = one.clone(), other.clone()
    table = table_of([one], [other])
    table.exchange(at(one), at(other))
    assert torch.equal(one, before[1])
    assert torch.equal(other, before[0])


def test_given_tensors_to_exchange_then_all_but_the_launch_is_done_before(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = some(1_000_003), some(1_000_003)
    before = one.clone(), other.clone()
    exchange = ByteExchange([(one, other)])
    monkeypatch.delattr(copy_table, "tiles")
    exchange.run()
    assert torch.equal(one, before[1])
    assert torch.equal(other, before[0])


@pytest.mark.skipif(torch.cuda.mem_get_info()[1] < PLENTY, reason="needs 30 GiB of GPU memory")
def test_given_a_tensor_of_more_than_four_gibibytes_then_its_end_is_right_too() -> None:
    nbytes = (5 << 30) + 24
    source = torch.arange(nbytes // 8, device=GPU)
    target = torch.zeros_like(source)
    table_of([source], [target]).copy(at(source), at(target))
    assert torch.equal(source, target)
    rows = source[: 5 << 27].view(5, 1 << 27)[:, 1 << 26 :]
    half = torch.zeros(rows.shape, dtype=torch.int64, device=GPU)
    table_of([rows], [half]).copy(at(rows), at(half))
    assert torch.equal(half, rows)


def test_given_a_thousand_tensors_in_many_runs_then_a_bucket_is_one_launch_and_no_copy() -> None:
    """Given a second version of the same shapes in the same places, then nothing else reaches the GPU."""
    module = torch.nn.ParameterList(torch.zeros(n % 7 + 1, 33, device=GPU) for n in range(1000)).requires_grad_(False)
    tensors = {name: torch.rand_like(tensor) for name, tensor in module.state_dict().items()}
    runs = [MemoryRun(1024 * n, each.view(-1).view(torch.uint8)) for n, each in enumerate(tensors.values())]
    places = [PlacedBytes(spec, 0, run.at, spec.nbytes) for spec, run in zip(specs_of(tensors), runs, strict=True)]
    engine = TorchEngine(module)

    def bring() -> None:
        engine.begin()
        engine.confirm()
        end = engine.load(LoadedBucket("bucket", runs, lambda: places))
        assert end is not None
        end.synchronize()
        engine.finish()
        engine.resume()

    bring()
    for tensor in tensors.values():
        tensor.add_(1)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as trace:
        bring()
    assert all(torch.equal(found, tensors[name]) for name, found in module.state_dict().items())
    assert kernels_of(trace) == ["move_tiles"]


def test_given_a_process_that_has_constants_of_kernels_written_down_then_tables_compile_there() -> None:
    """As vLLM's does, which hears of each compilation."""
    heard: list[object] = []
    knobs = pytest.importorskip("triton.knobs")
    before, knobs.runtime.jit_post_compile_hook = (
        knobs.runtime.jit_post_compile_hook,
        lambda *told, **named: heard.append((told, named)),
    )
    try:
        _launch_of.cache_clear()
        one, other = some(4096), some(4096)
        kept = one.clone(), other.clone()
        whole = np.array([4096], np.int64)
        none = np.zeros(1, np.int64)
        CopyTable(GPU, StridedBytes.contiguous(none, none, none, none, whole)).exchange(at(one), at(other))
    finally:
        knobs.runtime.jit_post_compile_hook = before
    assert torch.equal(one, kept[1])
    assert torch.equal(other, kept[0])
