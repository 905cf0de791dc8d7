"""Measures an update from a trainer whose ranks have columns of matrices, against the same bytes cut by rows.

Columns are a run of bytes in every row. ``fine`` is one matrix of 65,536 rows, of which each rank has 256 bytes a row;
``dense`` has the shapes of a dense model of 8B parameters at an eighth of their width, of which ranks have the columns
of the embedding and of the row-parallel matrices, and the rows of others.
Usage: ``python -m benchmarks.column_shards``.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import torch
import typer
from torch._C._distributed_c10d import TCPStore

from benchmarks._report import Row, report
from ckpt_transport import Config, ParameterServer, TensorShard
from ckpt_transport_torch import attach

LAYERS, HIDDEN, INNER, VOCABULARY = 32, 512, 1792, 16032
context = multiprocessing.get_context("spawn")


class Matrix(NamedTuple):
    """A tensor, and along which dimension ranks cut it."""

    name: str
    shape: tuple[int, int]
    cut: int


def fine() -> list[Matrix]:
    """A matrix of 32 MiB whose rows are short."""
    return [Matrix("weight", (1 << 16, 256), 1)]


def dense() -> list[Matrix]:
    """A dense model, scaled down."""
    found = [Matrix("embed", (VOCABULARY, HIDDEN), 1), Matrix("head", (VOCABULARY, HIDDEN), 0)]
    for layer in range(LAYERS):
        found += [
            Matrix(f"{layer}_qkv", (HIDDEN * 3 // 2, HIDDEN), 0),
            Matrix(f"{layer}_o", (HIDDEN, HIDDEN), 1),
            Matrix(f"{layer}_gate_up", (2 * INNER, HIDDEN), 0),
            Matrix(f"{layer}_down", (HIDDEN, INNER), 1),
        ]
    return found


MODELS = {"fine": fine, "dense": dense}


def shards(model: list[Matrix], rank: int, ranks: int, by_rows: bool) -> dict[str, TensorShard]:
    """What one rank has of a model."""
    found = {}
    for name, shape, cut in model:
        dim = 0 if by_rows else cut
        size = shape[dim] // ranks
        own, offsets = list(shape), [0, 0]
        own[dim], offsets[dim] = size, rank * size
        found[name] = TensorShard(torch.ones(own, dtype=torch.bfloat16), shape, offsets)
    return found


def run_rank(environ: Mapping[str, str], model: str, how: tuple[str, str, bool], sink: str, pipe: Connection) -> None:
    """A trainer's rank: at each order it makes a step and brings that to the sink; says what that took."""
    os.environ.update(environ)
    torch.set_num_threads(1)
    transport, call, by_rows = how
    with ParameterServer(Config.load(transport=transport)) as server:
        weights = shards(MODELS[model](), server.rank, int(environ["WORLD_SIZE"]), by_rows)
        while (number := pipe.recv()) >= 0:
            for weight in weights.values():
                weight.tensor.fill_(float(number))
            started, worked = time.perf_counter(), time.process_time()
            if call == "publish":
                made = server.publish(f"v{number}", weights, [sink])
            else:
                server.register(f"v{number}", tensors=weights)
                made = server.update(f"v{number}", [sink])
                server.unregister(f"v{number}")
            held = 0.0 if made is None else max(made.paused.values())
            pipe.send((time.perf_counter() - started, time.process_time() - worked, held))


def run_sink(model: str, pipe: Connection) -> None:
    """A module of the model's shapes; at each order it says what its processor did, and its least and largest value."""
    torch.set_num_threads(1)
    module = torch.nn.ParameterDict(
        {
            name: torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16), False)
            for name, shape, _ in MODELS[model]()
        }
    )
    with attach(module, version="zero") as attachment:
        pipe.send(attachment.address)
        while pipe.recv():
            ends = {float(end) for weight in module.values() for end in (weight.min(), weight.max())}
            pipe.send((time.process_time(), ends))


class Step(NamedTuple):
    """What one version took.

    Attributes:
        seconds: of the slowest rank.
        source: seconds of the processor, of the busiest rank.
        held: for which the sink's requests stood still.
        sink: seconds of the sink's processor.
    """

    seconds: float
    source: float
    held: float
    sink: float

    def __str__(self) -> str:
        names = ("took", "source", "held", "sink")
        return ", ".join(f"{name} {each * 1e3:.0f} ms" for name, each in zip(names, self, strict=True))


@contextmanager
def process(target: object, *arguments: object) -> Iterator[Connection]:
    """A process, by its pipe."""
    ours, theirs = context.Pipe()
    running = context.Process(target=target, args=(*arguments, theirs), daemon=True)  # type: ignore[arg-type]
    running.start()
    try:
        yield ours
    finally:
        running.join(30)


def steps_of(model: str, how: tuple[str, str, bool], ranks: int, steps: int) -> list[Step]:
    """Bring some versions to a sink, one after the other."""
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    known = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    environ = {name: str(value) for name, value in known.items()} | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    found: list[Step] = []
    with process(run_sink, model) as sink:
        address = str(sink.recv())
        managers = [process(run_rank, {**environ, "RANK": str(rank)}, model, how, address) for rank in range(ranks)]
        pipes = [manager.__enter__() for manager in managers]
        for number in range(1, steps + 1):
            sink.send(True)
            before, _ = sink.recv()
            for pipe in pipes:
                pipe.send(number)
            seconds, source, held = (max(column) for column in zip(*(pipe.recv() for pipe in pipes), strict=True))
            started = time.perf_counter()
            sink.send(True)
            after, values = sink.recv()
            looking = time.perf_counter() - started
            assert values == {float(number)}, values
            found.append(Step(seconds, source, held, max(after - before - looking, 0.0)))
        for pipe in pipes:
            pipe.send(-1)
        for manager in managers:
            manager.__exit__(None, None, None)
        sink.send(False)
    return found


def measure(models: list[str], ranks: int = 2, steps: int = 7) -> list[Row]:
    """Rows for each model and way."""
    rows: list[Row] = []
    for model in models:
        for transport, call in (("shm", "publish"), ("shm", "register"), ("gloo", "publish")):
            columns, by_rows = (steps_of(model, (transport, call, each), ranks, steps) for each in (False, True))
            for which, some in (("first", slice(0, 1)), ("later", slice(1, None))):
                own, other = (Step(*map(median, zip(*each[some], strict=True))) for each in (columns, by_rows))
                name = f"{model}, {call} over {transport}, {ranks} ranks, {which}"
                rows.append(Row(name, own.seconds / other.seconds, "cut by rows", "", f"{own}; by rows {other}"))
    return rows


def main(
    models: Annotated[list[str] | None, typer.Option("--model", help="fine or dense; both by default.")] = None,
    ranks: Annotated[int, typer.Option(help="Of the trainer.")] = 2,
    steps: Annotated[int, typer.Option(help="Of training.")] = 7,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Measure publishing columns of matrices at each step."""
    report(measure(models or list(MODELS), ranks, steps), json)


if __name__ == "__main__":
    typer.run(main)
