"""Ranks that cut matrices by columns are sent their columns alone, from shards that lie in several processes."""

from __future__ import annotations

import os
from collections import abc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection

import pytest
import torch
from torch._C._distributed_c10d import TCPStore

from ckpt_transport import Config, ParameterServer, Sink, TensorShard
from ckpt_transport.checkpoint import Tensors
from ckpt_transport_torch.loader_engine import LoaderEngine
from tests.available import where_available
from tests.experts import EXPERTS, WIDTH, Rank, loaded, loader, weights_of
from tests.fleet import context
from tests.patience import DEADLINE, PATIENT

SIZE, SOURCES = 2, 2
SEEDS = (2, 3, 4)
MATRIX = WIDTH * WIDTH * 4
NEEDED = WIDTH * 4 + 2 * MATRIX // SIZE + EXPERTS // SIZE * MATRIX


class SlicedEngine(LoaderEngine):
    """Takes whole tensors until its loader is recorded, and any parts of them afterwards, as vLLM's does."""

    @property
    def whole_tensors(self) -> bool:  # type: ignore[override]
        return self.share() is None


@contextmanager
def serving() -> Iterator[tuple[list[Rank], list[str]]]:
    """The modules and addresses of an engine of two ranks."""
    modules = [Rank(rank, SIZE) for rank in range(SIZE)]
    with ExitStack() as stack:
        sinks: list[Sink] = []
        for rank, module in enumerate(modules):
            engine = SlicedEngine(module, loader(module), "engine", f"rank {rank}")
            sinks.append(Sink(engine, config=Config.load(**PATIENT)))
            stack.callback(sinks[-1].close)
        for sink in sinks:
            sink.start()
        yield modules, [sink.address for sink in sinks]


def halves(tensors: dict[str, torch.Tensor], rank: int, dim: int) -> dict[str, TensorShard]:
    """Half of the rows of each, or of the columns where it has any."""
    found = {}
    for name, tensor in tensors.items():
        along = min(dim, tensor.dim() - 1)
        part, offsets = tensor.chunk(SOURCES, along)[rank].contiguous(), [0] * tensor.dim()
        offsets[along] = rank * part.shape[along]
        found[name] = TensorShard(part, tensor.shape, offsets)
    return found


def run_rank(
    environ: abc.Mapping[str, str], transport: str, how: str, dim: int, sinks: list[str], pipe: Connection
) -> None:
    """A trainer's rank; rank 0 says how many bytes each update brings to each sink.

    The first version, from which ranks record their loaders, is whole on one rank; of others each has a half.
    """
    os.environ.update(environ)
    config = Config.load(transport=transport, bucket_bytes="96KiB", **PATIENT)
    with ParameterServer(config) as server:
        for seed in SEEDS:
            tensors = weights_of(seed) if server.rank == 0 else {}
            given: Tensors = tensors if seed == SEEDS[0] else halves(weights_of(seed), server.rank, dim)
            getattr(server, how)(f"v{seed}", tensors=given)
            report = server.update(f"v{seed}", sinks if server.rank == 0 else None)
            server.unregister(f"v{seed}")
            pipe.send(None if report is None else (report.plan.bytes_to, len(report.plan.manifest.ordered)))
            pipe.recv()


def brought_by(transport: str, how: str, dim: int) -> list[tuple[dict[int, int], int]]:
    """Bring some versions to ranks of which each has got what its loader takes; what rank 0 says of each."""
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    known = {"WORLD_SIZE": SOURCES, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    environ = {name: str(value) for name, value in known.items()} | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    with serving() as (modules, addresses):
        pipes, processes = [], []
        for rank in range(SOURCES):
            ours, theirs = context.Pipe()
            arguments = {**environ, "RANK": str(rank)}, transport, how, dim, addresses, theirs
            processes.append(context.Process(target=run_rank, args=arguments, daemon=True))
            processes[-1].start()
            pipes.append(ours)
        brought = []
        for seed in SEEDS:
            assert pipes[0].poll(DEADLINE)
            brought.append(pipes[0].recv())
            for rank, module in enumerate(modules):
                expected = loaded(seed, rank, SIZE)
                assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())
            for pipe in pipes:
                pipe.send("go on")
        for process in processes:
            process.join(DEADLINE)
    return brought


@pytest.mark.parametrize(
    ("transport", "how"),
    [("gloo", "register"), ("gloo", "lend"), pytest.param("nixl", "register", marks=where_available("nixl").marks)],
)
def test_given_shards_of_rows_then_ranks_that_cut_columns_are_sent_what_they_need(transport: str, how: str) -> None:
    brought = brought_by(transport, how, 0)
    assert brought[0][1] == 0
    assert brought[1:] == [(dict.fromkeys(range(SOURCES, SOURCES + SIZE), NEEDED), 1)] * 2


@pytest.mark.parametrize(("transport", "how"), [("gloo", "register"), ("shm", "register"), ("shm", "lend")])
def test_given_shards_of_columns_then_ranks_get_what_they_need_however_they_cut(transport: str, how: str) -> None:
    """Given matrices that each rank of the trainer has by columns, and each rank of the engine by columns or rows."""
    brought = brought_by(transport, how, 1)
    matrices = sum(tensor.dim() > 1 for tensor in weights_of(SEEDS[0]).values())
    assert [ordered for _, ordered in brought] == [0, matrices, matrices]
    assert all(nbytes >= NEEDED for each, _ in brought[1:] for nbytes in each.values())
