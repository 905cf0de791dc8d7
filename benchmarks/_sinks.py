"""Runs sinks in processes for the benchmarks, which also measure the physical limit on the same memory."""

from __future__ import annotations

import datetime
import multiprocessing
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from benchmarks._bare import BARE, Bare
from ckpt_transport_torch import Loader, attach

PIECE_BYTES = 64 << 20
ProcessGroupGloo: Any = dist.ProcessGroupGloo
"""Any, because torch's type stubs lack most of it."""

context = multiprocessing.get_context("spawn")


class Block(torch.nn.Module):
    """A module of ``nbytes`` in bf16, in parameters of ``piece_bytes``."""

    def __init__(self, nbytes: int, piece_bytes: int) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(
            torch.nn.Parameter(torch.zeros(piece_bytes // 2, dtype=torch.bfloat16), requires_grad=False)
            for _ in range(nbytes // piece_bytes)
        )

    def forward(self) -> torch.Tensor:
        return torch.stack([weight[0] for weight in self.weights])


def tensors(nbytes: int, fill: float, piece_bytes: int = PIECE_BYTES) -> dict[str, torch.Tensor]:
    """What a :class:`Block` of that size takes, every element equal to ``fill``; takes no memory itself."""
    return {
        f"weights.{number}": torch.tensor(fill, dtype=torch.bfloat16).expand(piece_bytes // 2)
        for number in range(nbytes // piece_bytes)
    }


class BareGloo:
    """gloo without anything around it: broadcasts of 64 MiB pieces, one after the other."""

    def __init__(self, path: str, rank: int, world_size: int) -> None:
        options = ProcessGroupGloo._Options()
        options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        options._timeout = datetime.timedelta(seconds=60)
        self._group = ProcessGroupGloo(FileStore(path, world_size), rank, world_size, options)

    def broadcast(self, pieces: Sequence[torch.Tensor]) -> None:
        options = dist.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        for piece in pieces:
            self._group.broadcast([piece], options).wait()


def by_name(module: torch.nn.Module) -> Loader:
    """A loader that copies each tensor into the parameter of its name."""

    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in pairs:
            module.get_parameter(name).data.copy_(tensor)

    return load


def run_sink(nbytes: int, piece_bytes: int, by_loader: bool, pipe: Connection) -> None:
    module = Block(nbytes, piece_bytes)
    bare: BareGloo | None = None
    end: Bare | None = None
    source: list[torch.Tensor] = []
    with attach(module, version="zero", loader=by_name(module) if by_loader else None) as attachment:
        pipe.send(attachment.address)
        while (order := pipe.recv())[0] != "stop":
            started = time.perf_counter()
            match order:
                case ("gloo", path, rank, world_size):
                    bare = BareGloo(path, rank, world_size)
                case ("broadcast",):
                    assert bare is not None
                    bare.broadcast([weight.detach() for weight in module.weights])
                case ("bare", library, size):
                    end = BARE[library](torch.zeros(size, dtype=torch.uint8), True)
                    pipe.send(end.address)
                    continue
                case ("connect", address):
                    assert end is not None
                    end.connect(address)
                case ("move",):
                    assert end is not None
                    end.move()
                case ("processor",):
                    pipe.send(time.process_time())
                    continue
                case ("fill source",):
                    source = [torch.ones_like(weight) for weight in module.weights]
                case ("copy",):
                    for weight, other in zip(module.weights, source, strict=True):
                        weight.copy_(other)
                case ("values",):
                    values = {float(value) for weight in module.weights for value in (weight.min(), weight.max())}
                    pipe.send((attachment.version, values))
                    continue
            pipe.send(time.perf_counter() - started)


class SinkProcess:
    """One attached module in a process of its own; ``ask`` and ``answer`` talk to it."""

    def __init__(self, nbytes: int, piece_bytes: int, by_loader: bool) -> None:
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=run_sink, args=(nbytes, piece_bytes, by_loader, theirs), daemon=True)
        self._process.start()
        self.address = str(self.answer())

    def ask(self, *order: Any) -> None:
        self._pipe.send(order)

    def answer(self) -> Any:
        if not self._pipe.poll(300):
            raise TimeoutError("a sink of the benchmark does not answer")
        return self._pipe.recv()

    def stop(self) -> None:
        self.ask("stop")
        self._process.join(30)


def ask_all(running: Sequence[SinkProcess], *order: Any) -> float:
    """Have all sinks do something at the same time; the seconds that the slowest took."""
    for sink in running:
        sink.ask(*order)
    return max(float(sink.answer()) for sink in running)


@contextmanager
def sinks(
    count: int, nbytes: int, piece_bytes: int = PIECE_BYTES, *, by_loader: bool = False
) -> Iterator[list[SinkProcess]]:
    """``count`` sinks of ``nbytes`` each, which load by name, or through a loader that does."""
    running = [SinkProcess(nbytes, piece_bytes, by_loader) for _ in range(count)]
    try:
        yield running
    finally:
        for sink in running:
            sink.stop()
