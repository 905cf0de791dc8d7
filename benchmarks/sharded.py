"""Measures an update from a trainer whose ranks have shards, given as they are, and gathered first.

The limit is a plain copy of the same bytes in the sink. What trainers do without this library's help is to gather each
tensor on all ranks and let one of them send it. Usage: ``python -m benchmarks.sharded``.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import torch
import torch.distributed as dist
import typer
from torch._C._distributed_c10d import TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from benchmarks._report import Row, report
from benchmarks._sinks import SinkProcess, sinks
from ckpt_transport import Config, ParameterServer

PIECE_BYTES = 16 << 20
WAYS = ("publish", "lend", "register", "gather")
"""Publishing and lending first: what others leave in memory for the next version would be taken for their own."""
context = multiprocessing.get_context("spawn")


def sharded(nbytes: int, piece_bytes: int, mesh: DeviceMesh) -> dict[str, DTensor]:
    """This rank's part of what a sink takes: every tensor is cut evenly."""
    shape = torch.Size([piece_bytes // 2])
    own = shape[0] // mesh.size()
    return {
        f"weights.{number}": DTensor.from_local(
            torch.ones(own, dtype=torch.bfloat16), mesh, [Shard(0)], run_check=False, shape=shape, stride=(1,)
        )
        for number in range(nbytes // piece_bytes)
    }


def run_rank(environ: Mapping[str, str], nbytes: int, piece_bytes: int, sink: str, pipe: Connection) -> None:
    """A trainer's rank: at each order it makes a step and brings that to the sink; says how long that took."""
    os.environ.update(environ)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with ParameterServer(Config.load(transport="shm")) as server:
        weights = sharded(nbytes, piece_bytes, mesh)
        without = memory("VmRSS")
        while (order := pipe.recv())[0] != "stop":
            way, number = order
            for weight in weights.values():
                weight.to_local().fill_(float(number))
            dist.barrier()
            forget_peak()
            started, worked = time.perf_counter(), time.process_time()
            version = f"v{number}"
            if way == "publish":
                report = server.publish(version, weights, [sink])
                run = 0.0 if report is None else report.phases["run"]
                worked = time.process_time() - worked
                pipe.send((time.perf_counter() - started, memory("VmHWM") - without, run, worked))
                continue
            if way == "gather":
                whole = {name: tensor.full_tensor() for name, tensor in weights.items()}
                server.register(version, tensors=whole if server.rank == 0 else {})
            else:
                getattr(server, way)(version, tensors=weights)
            server.update(version, [sink])
            server.unregister(version)
            pipe.send((time.perf_counter() - started, memory("VmHWM") - without, 0.0, 0.0))
    dist.destroy_process_group()


def forget_peak() -> None:
    """Begin anew to note the most memory that this process has."""
    Path("/proc/self/clear_refs").write_text("5")


def memory(field: str) -> int:
    """Bytes of memory that this process has, ``VmRSS``, or had at most, ``VmHWM``."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) << 10


class Taken(NamedTuple):
    """What an update took.

    Attributes:
        seconds: of the slowest rank.
        memory: bytes of the rank that took most.
        run: seconds in which bytes went, where rank 0 says so; else 0.
        processor: seconds of the processor that the busiest rank took to publish; else 0.
    """

    seconds: float
    memory: int
    run: float
    processor: float


class Trainer:
    """The ranks of one trainer."""

    def __init__(self, ranks: int, nbytes: int, piece_bytes: int, sink: str) -> None:
        self._store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        known = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self._store.port}
        environ = {name: str(value) for name, value in known.items()} | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            arguments = ({**environ, "RANK": str(rank)}, nbytes, piece_bytes, sink, theirs)
            self._processes.append(context.Process(target=run_rank, args=arguments, daemon=True))
            self._processes[-1].start()
            self._pipes.append(ours)

    def bring(self, way: str, number: int) -> Taken:
        """Bring a version to the sink, and say what that took."""
        for pipe in self._pipes:
            pipe.send((way, number))
        return Taken(*map(max, zip(*(pipe.recv() for pipe in self._pipes), strict=True)))

    def stop(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(("stop",))
            process.join(30)


def measure(ranks: Sequence[int] = (2, 4), gib: float = 1.0, updates: int = 5) -> list[Row]:
    """Rows for each number of ranks."""
    return [row for count in ranks for row in _measure(count, int(gib * (1 << 30)), updates)]


def _measure(ranks: int, nbytes: int, updates: int) -> list[Row]:
    with sinks(1, nbytes, PIECE_BYTES) as (sink,):
        trainer = Trainer(ranks, nbytes, PIECE_BYTES, sink.address)
        sink.ask("fill source")
        sink.answer()
        taken: dict[str, list[float]] = {way: [] for way in ("copy", *WAYS)}
        peaks: dict[str, int] = dict.fromkeys(WAYS, 0)
        beside: list[float] = []
        number = 0
        for way in WAYS:  # one after the other, so that each finds the pool that its last version has left
            for _ in range(updates + 1):
                taken["copy"].append(_copy(sink))
                number += 1
                brought = trainer.bring(way, number)
                taken[way].append(brought.seconds)
                if brought.run:
                    beside.append(brought.seconds - brought.run)
                peaks[way] = max(peaks[way], brought.memory)
                sink.ask("values")
                assert sink.answer() == (f"v{number}", {float(number)})
        trainer.stop()
    seconds = {way: median(of_way[1:]) for way, of_way in taken.items()}
    size = f"{nbytes / (1 << 30):g} GiB of {ranks} ranks"
    figures = ", ".join(f"{way} {each * 1e3:.0f} ms" for way, each in seconds.items())
    rows = [
        Row(f"{way} shards + update, {size}", seconds[way] / seconds[against], what, target, figures)
        for way, against, what, target in (
            ("register", "copy", "a plain copy_", ""),
            ("lend", "copy", "a plain copy_", "<=1.4"),
            ("publish", "copy", "a plain copy_", "<=1.4"),
            ("lend", "gather", "gathering, then the same from one rank", "<=0.5"),
        )
    ]
    words = median(beside[1:])
    rows.append(
        Row(
            f"publish shards, all but the run, {size}",
            words / seconds["copy"],
            "a plain copy_",
            "",
            f"{words * 1e3:.0f} ms",
        )
    )
    bucket = Config.load().bucket_bytes
    megabytes = ", ".join(f"{way} {peaks[way] / 1e6:.0f} MB" for way in WAYS)
    rows += [
        Row(
            f"peak memory of a rank beyond its shards, {way}, {size}", peaks[way] / bucket, "a bucket", "<=2", megabytes
        )
        for way in ("lend", "publish")
    ]
    return rows


def _copy(sink: SinkProcess) -> float:
    sink.ask("copy")
    return float(sink.answer())


def main(
    ranks: Annotated[list[int] | None, typer.Option(help="Of the trainer; may be given several times.")] = None,
    gib: Annotated[float, typer.Option(help="Size of the weights.")] = 1.0,
    updates: Annotated[int, typer.Option(help="Repetitions.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Update one sink over shared memory, from shards as they are and from what is gathered of them."""
    report(measure(ranks or (2, 4), gib, updates), json)


if __name__ == "__main__":
    typer.run(main)
