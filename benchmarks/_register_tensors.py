"""Holds registering tensors that are in memory against copying the same bytes as fast as the machine can."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from statistics import median

import numpy as np
import torch

from benchmarks._models import Shapes
from benchmarks._row import Row
from ckpt_transport.checkpoint import Mapping, Store, rules
from ckpt_transport.memory import Buffer, Segment, usable_cores

PIECE_BYTES = 8 << 20
LARGE_PIECE_BYTES = 1 << 30


def synthetic(nbytes: int, tensor_bytes: int) -> Shapes:
    """About ``nbytes`` in tensors of one size, with a small one after each."""
    rows, columns = tensor_bytes // 4096, 2048
    count = max(1, nbytes // (rows * columns * 2))
    found: dict[str, tuple[int, ...]] = {}
    for number in range(count):
        found |= {f"layers.{number}.weight": (rows, columns), f"layers.{number}.norm": (columns,)}
    return found


def from_host(name: str, shapes: Shapes, repetitions: int) -> list[Row]:
    """Rows for tensors on the CPU, in a new pool and in the one of the version before."""
    with _Timed(shapes, torch.device("cpu"), pinned=False) as timed:
        copies, reused = [], []
        for _ in range(repetitions):
            copies.append(timed.copied_on_host())
            reused.append(timed.registered())
        copy, again, first = median(copies), median(reused), timed.first
    detail = f"{_ms(again)}, {_ms(copy)}; {timed.says}, {usable_cores()} threads; new pool {_ms(first)}"
    return [Row(f"register CPU tensors, {name}, reused pool", again / copy, "parallel memcpy", "<=1.4", detail)]


def cast_on_host(name: str, shapes: Shapes, repetitions: int) -> list[Row]:
    """A row for FP32 tensors that become BF16 on their way, against copying what they become."""
    to_bf16 = Mapping.of(rules.Cast("BF16"))
    with _Timed(shapes, torch.device("cpu"), pinned=False, dtype=torch.float32, mapping=to_bf16) as timed:
        copies, cast = [], []
        for _ in range(repetitions):
            copies.append(timed.copied_on_host())
            cast.append(timed.registered())
        copy, again = median(copies), median(cast)
    detail = f"{_ms(again)}, {_ms(copy)}; {timed.says}, {usable_cores()} threads, {torch.get_num_threads()} of torch"
    return [Row(f"register CPU tensors, FP32 to BF16, {name}", copy / again, "parallel memcpy", ">=0.5", detail)]


def from_gpu(name: str, shapes: Shapes, repetitions: int) -> list[Row]:
    """Rows for tensors on a GPU: in a reused pool against the copy engine, and what a new pool takes beside that."""
    device = torch.device("cuda")
    with _Timed(shapes, device, pinned=True) as timed:
        copies, reused = [], []
        for _ in range(repetitions):
            copies.append(timed.copied_from_gpu())
            reused.append(timed.registered())
        copy, again, made = median(copies), median(reused), timed.first - median(reused)
        nbytes = timed.nbytes
    touched, locked = _bare_lock(nbytes)
    rate = nbytes / again / 1e9
    return [
        Row(
            f"register from one GPU, {name}, reused pool",
            again / copy,
            "one copy to the same pool at a time",
            "<=1.2",
            f"{_ms(again)}, {_ms(copy)}; {timed.says}, {rate:.1f} GB/s",
        ),
        Row(
            f"make the page-locked pool for it, {name}",
            made / (touched + locked),
            "touching the pages by all cores, and one cudaHostRegister",
            "",
            f"{_ms(made)}, {_ms(touched)} + {_ms(locked)}",
        ),
    ]


class _Timed:
    """Times registrations and copies of the same tensors, in a store of its own."""

    def __init__(
        self,
        shapes: Shapes,
        device: torch.device,
        *,
        pinned: bool,
        dtype: torch.dtype = torch.bfloat16,
        mapping: Mapping | None = None,
    ) -> None:
        self._device, self._mapping = device, mapping
        self._tensors: dict[str, torch.Tensor] = {
            name: torch.empty(shape, dtype=dtype, device=device).fill_(number % 251)
            for number, (name, shape) in enumerate(shapes.items())
        }
        self.nbytes = sum(tensor.numel() for tensor in self._tensors.values()) * torch.bfloat16.itemsize
        self.says = f"{len(self._tensors):,} tensors, {self.nbytes / 1e9:.1f} GB"
        self._store = Store(pinned=pinned)
        began = time.perf_counter()
        self._pool = self._store.register("v", tensors=self._tensors, mapping=mapping).buffers[0].tensor
        self.first = time.perf_counter() - began
        self._store.unregister("v")

    def registered(self) -> float:
        """Seconds that the next version takes, in the pool that is there."""

        def register() -> None:
            self._store.register("v", tensors=self._tensors, mapping=self._mapping)

        taken = _seconds(register)
        found = self._store.get("v").tensors()
        for name in (next(iter(found)), list(found)[len(found) // 2], list(found)[-1]):
            assert torch.equal(found[name], self._tensors[name].cpu().to(torch.bfloat16)), name
        self._store.unregister("v")
        return taken

    @cached_property
    def _as_many_bytes(self) -> torch.Tensor:
        return torch.ones(self.nbytes, dtype=torch.uint8)

    def copied_on_host(self) -> float:
        """Seconds in which all cores copy as many bytes into the pool, from one run of memory."""
        source, target = self._as_many_bytes.numpy(), self._pool.numpy()

        def piece(start: int) -> None:
            end = min(start + PIECE_BYTES, self.nbytes)
            np.copyto(target[start:end], source[start:end])

        with ThreadPoolExecutor(usable_cores()) as threads:
            return _seconds(lambda: list(threads.map(piece, range(0, self.nbytes, PIECE_BYTES))))

    def copied_from_gpu(self) -> float:
        """Seconds in which the copy engine brings as many bytes, in copies of a gibibyte."""
        source = torch.empty(min(LARGE_PIECE_BYTES, self.nbytes), dtype=torch.uint8, device=self._device)

        def copy() -> None:
            for piece in torch.split(self._pool[: self.nbytes], LARGE_PIECE_BYTES):
                piece.copy_(source[: piece.numel()], non_blocking=True)
            torch.cuda.synchronize(self._device)

        torch.cuda.synchronize(self._device)
        return _seconds(copy)

    def __enter__(self) -> _Timed:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()
        self._tensors = {}


def _bare_lock(nbytes: int) -> tuple[float, float]:
    """Seconds in which all cores touch new shared memory, and one call page-locks it."""
    segment = Segment.create(nbytes)
    buffer = Buffer.of(segment)
    with ThreadPoolExecutor(usable_cores()) as threads:
        touched = _seconds(lambda: buffer.populate(threads))
    locked = _seconds(buffer.pin)
    segment.close()
    return touched, locked


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"
