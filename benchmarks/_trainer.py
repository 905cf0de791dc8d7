"""Runs the processes of the end-to-end benchmark: a trainer's ranks, which time what their caller waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks._gpu_worker import host_to_device
from benchmarks._models import Shapes, tensors
from ckpt_transport import Config, ParameterServer, Report
from ckpt_transport.memory import Buffer

PIECE_BYTES = 64 << 20
LARGE_PIECE_BYTES = 1 << 30
REGISTERED, LENT = "registered", "lent"
"""Names of versions, so that a trainer can have one of each."""


@dataclass(frozen=True)
class Timed:
    """One call, by the wall clock of its caller.

    Attributes:
        wall: seconds of the call, and of taking the weights in where they are new for it.
        held: the longest for which a sink's requests stood still.
        phases: what the report says took how long.
        predicted: how long ``run`` was expected to take.
        ways: of the routes, which transport each had.
        in_place: why the version was not staged; empty where it was, or was not to be.
    """

    wall: float
    held: float
    phases: dict[str, float]
    predicted: float
    ways: tuple[str, ...]
    in_place: str = ""

    @property
    def said(self) -> str:
        """Its phases, in words."""
        return ", ".join(f"{name} {milliseconds(each)}" for name, each in self.phases.items() if each > 0.0005)


def run_trainer(rank: int, size: int, device: str, pipe: Connection) -> None:
    """One rank: it has its part of a version on its device, or on the host, and brings it to sinks as it is told."""
    trainer = Trainer(rank, size, torch.device(device))
    while (order := pipe.recv())[0] != "stop":
        pipe.send(getattr(trainer, order[0])(*order[1:]))
    trainer.close()


class Trainer:
    """A rank of a trainer; its methods are the orders that :func:`run_trainer` takes."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self._rank, self._size, self._device = rank, size, device
        self._server: ParameterServer | None = None
        self._held: dict[str, torch.Tensor] = {}
        self._pool: Buffer | None = None
        if self._on_gpu:
            torch.cuda.set_device(device)

    def open(self, transport: str, coordinator: str, commit: str = "auto") -> None:
        """Begin anew, with nothing taken in."""
        self.close()
        config = Config.load(transport=transport, coordinator=coordinator if self._size > 1 else "", commit=commit)
        self._server = ParameterServer(config, rank=self._rank, world_size=self._size)

    def have(self, shapes: Shapes, version: int, where: str) -> int:
        """Hold this rank's part of a version; returns its bytes. On the host it takes no memory itself."""
        self._held = {}
        if self._on_gpu:
            torch.cuda.empty_cache()
        own = {
            name: tensor
            for index, (name, tensor) in enumerate(tensors(shapes, version).items())
            if index * self._size // len(shapes) == self._rank
        }
        if where == "device":
            own = {name: filled(tensor, self._device) for name, tensor in own.items()}
            wait_for(self._device)
        self._held = own
        return sum(tensor.nbytes for tensor in own.values())

    def register(self) -> float:
        """Seconds that it takes to copy the version into a new pool, or into that of the version before."""
        if self._pool is not None:
            self._open_server.unregister(REGISTERED)
        began = time.perf_counter()
        (self._pool,) = self._open_server.register(REGISTERED, tensors=self._held).buffers
        return time.perf_counter() - began

    def update(self, addresses: Sequence[str]) -> Timed | None:
        """Bring the version that is registered."""
        began = time.perf_counter()
        report = self._open_server.update(REGISTERED, addresses)
        return timed_of(time.perf_counter() - began, report)

    def update_p2p(self, addresses: Sequence[str]) -> Timed | None:
        """Bring the version that is registered to engines that join."""
        began = time.perf_counter()
        report = self._open_server.update_p2p(REGISTERED, addresses)
        return timed_of(time.perf_counter() - began, report)

    def warm_up(self, addresses: Sequence[str]) -> Timed | None:
        """Do before the first update what it would do, with the version that is registered."""
        began = time.perf_counter()
        report = self._open_server.warm_up(REGISTERED, addresses)
        return timed_of(time.perf_counter() - began, report)

    def rollback(self, addresses: Sequence[str]) -> Timed | None:
        """Have the version before served again."""
        began = time.perf_counter()
        report = self._open_server.rollback(addresses)
        return timed_of(time.perf_counter() - began, report)

    def lend_and_update(self, addresses: Sequence[str]) -> Timed | None:
        """What a training loop does at each step, with the weights where they lie."""
        began = time.perf_counter()
        self._open_server.lend(LENT, self._held)
        report = self._open_server.update(LENT, addresses)
        wall = time.perf_counter() - began
        self._open_server.unregister(LENT)
        return timed_of(wall, report)

    def lend_and_trace(self, addresses: Sequence[str], path: Path) -> float:
        """The same once more; rank 0 writes the timeline of the update to a file, and says when that begins, in seconds
        since the epoch."""
        self._open_server.lend(LENT, self._held)
        report = self._open_server.update(LENT, addresses)
        self._open_server.unregister(LENT)
        if report is None:
            return 0.0
        report.write_trace(path)
        return min(event.start for event in report.timeline)

    def lend_and_warm_up(self, addresses: Sequence[str]) -> Timed | None:
        """What a training loop does before its first step, with the weights that it lends at each."""
        began = time.perf_counter()
        self._open_server.lend(LENT, self._held)
        report = self._open_server.warm_up(LENT, addresses)
        self._open_server.unregister(LENT)
        return timed_of(time.perf_counter() - began, report)

    def copy_pool(self, gpu: int, parts: int = 1) -> float:
        """Seconds that plain copies of so large a part of its pool take to its own GPU, whatever ``gpu`` is; without
        GPUs, in memory."""
        assert self._pool is not None, "register it first"
        if not self._on_gpu:
            return between(self._device, self._device, self._pool.nbytes // parts)
        self._pool.pin()
        return host_to_device(self._pool.tensor[: self._pool.nbytes // parts], PIECE_BYTES)

    def copy_held(self, gpu: int, parts: int = 1) -> float:
        """Seconds that plain copies of as many bytes as that part of what it holds take from its device to ``gpu``;
        without GPUs, in memory."""
        nbytes = sum(tensor.nbytes for tensor in self._held.values()) // parts
        return between(self._device, torch.device("cuda", gpu) if self._on_gpu else self._device, nbytes)

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self._held, self._pool = {}, None

    @property
    def _on_gpu(self) -> bool:
        return self._device.type == "cuda"

    @property
    def _open_server(self) -> ParameterServer:
        assert self._server is not None, "open it first"
        return self._server


def timed_of(wall: float, report: Report | None) -> Timed | None:
    """Rank 0 alone has a report."""
    if report is None:
        return None
    ways = tuple(route.transport for route in report.plan.routes)
    return Timed(
        wall, max(report.paused.values(), default=0), dict(report.phases), report.predicted, ways, report.in_place
    )


def between(source: torch.device, target: torch.device, nbytes: int) -> float:
    """Seconds of copies from one device to another, or on one, in large pieces."""
    piece = min(LARGE_PIECE_BYTES, nbytes)
    here = torch.empty(piece, dtype=torch.uint8, device=source)
    there = torch.empty(piece, dtype=torch.uint8, device=target)

    def copy() -> None:
        for _ in range(nbytes // piece):
            there.copy_(here, non_blocking=True)
        there[: nbytes % piece].copy_(here[: nbytes % piece], non_blocking=True)
        wait_for(source)
        wait_for(target)

    copy()
    return _seconds(copy)


def filled(expanded: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of one value, with memory of its own; only that value crosses from the host."""
    one = expanded[(0,) * expanded.dim()].to(device)
    return one.expand(expanded.shape).clone(memory_format=torch.contiguous_format)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"
