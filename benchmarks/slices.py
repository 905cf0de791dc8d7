"""Measures updates of a tensor-parallel engine over shared memory, of which each rank reads its slices where they lie.

Two processes have half of each weight: rows of every other one, and columns of those between. They are updated over
``shm``, with digests and without. The physical limit is that both copy their slices out of shared memory at one time,
which is measured in turns with the updates. What an update reads is counted by its plan, and compared with the
bytes that parameters hold. Usage: ``python -m benchmarks.slices``.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer

from benchmarks._report import Row, report
from ckpt_transport import Config, ParameterServer
from ckpt_transport_torch import Loader, attach

RANKS = 2
WIDTH = 4096
MATRIX = 2 * WIDTH * WIDTH
context = multiprocessing.get_context("spawn")


class Rank(torch.nn.Module):
    """Half of some weights of 32 MiB in bf16: rows of the even ones, columns of the odd ones."""

    def __init__(self, matrices: int) -> None:
        super().__init__()
        half = WIDTH // RANKS
        shapes = ((half, WIDTH) if number % 2 == 0 else (WIDTH, half) for number in range(matrices))
        self.weights = torch.nn.ParameterList(
            torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16), requires_grad=False) for shape in shapes
        )


def slice_of(number: int, tensor: torch.Tensor, rank: int) -> torch.Tensor:
    """What a rank takes of a weight."""
    return tensor.chunk(RANKS, dim=number % 2)[rank]


def loader(module: Rank, rank: int) -> Loader:
    """A loader that slices whole tensors, as those of inference engines do."""

    def load(pairs: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in pairs:
            number = int(name)
            module.weights[number].data.copy_(slice_of(number, tensor, rank))

    return load


def run_rank(rank: int, matrices: int, source: list[torch.Tensor], pipe: Connection) -> None:
    """Serve; copy all slices out of ``source`` when told so; say how long that took, or what is served."""
    module = Rank(matrices)
    with attach(module, version="zero", loader=loader(module, rank), engine="engine", label=f"rank {rank}") as serving:
        pipe.send(serving.address)
        while (order := pipe.recv()) != "end":
            if order == "copy":
                began = time.perf_counter()
                for number, parameter in enumerate(module.weights):
                    parameter.data.copy_(slice_of(number, source[number], rank))
                pipe.send(time.perf_counter() - began)
            else:
                expected = [slice_of(number, weight(number, order), rank) for number in range(matrices)]
                pipe.send(all(map(torch.equal, module.weights, expected)))


def weight(number: int, seed: int) -> torch.Tensor:
    """A weight of a version."""
    along = torch.arange(WIDTH, dtype=torch.int32)
    return ((along[:, None] * 7 + along * 3 + number * 31 + seed) % 251).bfloat16()


@contextmanager
def engine(matrices: int) -> Iterator[tuple[list[str], list[Connection]]]:
    """The addresses of all ranks, and pipes to them."""
    source = [torch.zeros(WIDTH, WIDTH, dtype=torch.bfloat16) for _ in range(matrices)]
    for tensor in source:
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    with ExitStack() as stack:
        pipes: list[Connection] = []
        for rank in range(RANKS):
            ours, theirs = context.Pipe()
            process = context.Process(target=run_rank, args=(rank, matrices, source, theirs))
            process.start()
            stack.callback(process.join)
            stack.callback(ours.send, "end")
            pipes.append(ours)
        yield [pipe.recv() for pipe in pipes], pipes


def measure(matrices: int, updates: int) -> list[Row]:
    """The bytes that are read, and the time, against the least that both can be."""
    taken: dict[str, list[float]] = {"always": [], "never": []}
    copies: list[float] = []
    read = 0
    with engine(matrices) as (addresses, pipes), ExitStack() as stack:
        servers = {
            integrity: stack.enter_context(ParameterServer(Config.load(transport="shm", integrity=integrity)))
            for integrity in taken
        }
        seed = 0
        for number in range(updates + 1):
            for integrity, server in servers.items():
                seed += 1
                name = f"v{seed}"
                server.register(name, tensors={str(each): weight(each, seed) for each in range(matrices)})
                report_of = server.update(name, addresses)
                assert report_of is not None
                server.unregister(name)
                if number:
                    taken[integrity].append(report_of.seconds)
                    read = max(report_of.plan.bytes_to.values())
            for pipe in pipes:
                pipe.send(seed)
            assert {pipe.recv() for pipe in pipes} == {True}, "a rank does not hold what was sent"
            for pipe in pipes:
                pipe.send("copy")
            copies.append(max([pipe.recv() for pipe in pipes]))
    least = matrices * MATRIX // RANKS
    what = f"{RANKS} ranks over shm, {matrices * MATRIX / (1 << 30):g} GiB cut by rows and by columns"
    detail = f"{read / 1e6:,.0f} MB of {matrices * MATRIX / 1e6:,.0f}; parameters hold {least / 1e6:,.0f}"
    rows = [Row(f"bytes that a rank reads, {what}", read / least, "what its parameters hold", "<=1.0", detail)]
    limit = median(copies)
    for integrity, seconds in taken.items():
        detail = f"update {median(seconds) * 1e3:.0f} ms, copies {limit * 1e3:.0f} ms"
        how = "with digests" if integrity == "always" else "without digests"
        rows.append(Row(f"update {how}, {what}", median(seconds) / limit, "both copy their slices", "", detail))
    return rows


def main(
    matrices: Annotated[int, typer.Option(help="Weights of 32 MiB each.")] = 16,
    updates: Annotated[int, typer.Option(help="Repetitions.")] = 7,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Update an engine of two ranks over shared memory, with digests and without, in turns."""
    report(measure(matrices, updates), json)


if __name__ == "__main__":
    typer.run(main)
