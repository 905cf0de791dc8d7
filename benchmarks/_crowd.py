"""Runs a crowd of real sinks for the benchmarks of control: several in each process, each with a module of its own."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks._sinks import Block
from ckpt_transport import Config
from ckpt_transport_torch import attach

PER_PROCESS = 4
"""Threads that wait for Python's lock look for it every 5 ms. Where dozens of sinks share a lock, on fewer cores than
processes, they do little else; a sink of a cluster has its process to itself."""
HEARTBEAT = 5.0
"""Seconds from one sign of life to the next: an update of a crowd takes seconds, because all share a machine, and would
take tenths of a second in a cluster."""
PATIENCE = 300.0
context = multiprocessing.get_context("forkserver")
"""Torch is imported once for all."""
context.set_forkserver_preload([__name__])


def run_sinks(count: int, nbytes: int, piece_bytes: int, pipe: Connection) -> None:
    """Attach ``count`` modules; say where; then answer with what is served, or the time used, until told to stop."""
    torch.set_num_threads(1)
    config = Config.load(heartbeat_interval=HEARTBEAT, heartbeat_timeout=60.0, join_timeout=60.0)
    modules = [Block(nbytes, piece_bytes) for _ in range(count)]
    with ExitStack() as stack:
        attached = [stack.enter_context(attach(module, version="zero", config=config)) for module in modules]
        gc.freeze()
        pipe.send([attachment.address for attachment in attached])
        while (asked := pipe.recv()) != "stop":
            if asked == "time":
                pipe.send(time.process_time())
                continue
            held = {float(weight.max()) for module in modules for weight in module.weights}
            pipe.send(({attachment.version for attachment in attached}, held))


class Crowd:
    """The sinks of all processes.

    Attributes:
        addresses: of all.
    """

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes
        self.addresses = [address for pipe in pipes for address in _answer(pipe)]

    def check(self, version: str, value: float) -> None:
        """
        Raises:
            RuntimeError: a sink serves something else, or holds other values.
        """
        for pipe in self._pipes:
            pipe.send("check")
            if (found := _answer(pipe)) != ({version}, {value}):
                raise RuntimeError(f"sinks should serve '{version}' with {value}, and serve {found}")

    def used(self) -> float:
        """Seconds of processor time that all sinks have used so far."""
        for pipe in self._pipes:
            pipe.send("time")
        used: float = sum(_answer(pipe) for pipe in self._pipes)
        return used


@contextmanager
def crowd(count: int, nbytes: int, piece_bytes: int) -> Iterator[Crowd]:
    """``count`` sinks of ``nbytes`` each, in as few processes as :data:`PER_PROCESS` allows, and at least two."""
    processes = max(-(-count // PER_PROCESS), min(count, 2))
    pipes, running = [], []
    for number in range(processes):
        mine = count // processes + (number < count % processes)
        pipe, theirs = context.Pipe()
        process = context.Process(target=run_sinks, args=(mine, nbytes, piece_bytes, theirs), daemon=True)
        process.start()
        pipes.append(pipe)
        running.append(process)
    try:
        yield Crowd(pipes)
    finally:
        for pipe in pipes:
            with suppress(BrokenPipeError):
                pipe.send("stop")
        for process in running:
            process.join(60)
            if process.is_alive():
                process.kill()


def _answer(pipe: Connection) -> Any:
    if not pipe.poll(PATIENCE):
        raise TimeoutError("the sinks of the benchmark do not answer")
    return pipe.recv()
