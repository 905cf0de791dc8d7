"""Measures updates of a real vLLM by trainers that lend their weights, or have them in a pool of the host."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch

from benchmarks._attempts import Attempts, console
from benchmarks._brought import Brought, Variant, against_named
from benchmarks._gpu_worker import ParentPeer, Peer
from benchmarks._models import Shapes, size
from benchmarks._row import Row
from benchmarks._trainer import milliseconds
from benchmarks._trainers import Orders, Trainers, opened, trainer_ranks
from benchmarks._vllm_engine import names_of, start
from benchmarks._weighted_sums import weighted_sum
from ckpt_transport import Sink, ask_version
from ckpt_transport.planning import TensorSpec

WARM_UP_SECONDS = 240
CORES = "VLLM_CPU_OMP_THREADS_BIND"
MEMORY_SHARE = 0.27
"""Of a GPU's memory that vLLM takes; half of the rest, beside the trainer's weights, has room for a version."""
SPARED = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
ENGINE = "benchmark"
"""The name that the ranks of one engine share."""


@dataclass(frozen=True)
class VllmSituation:
    """Who brings what to a real vLLM.

    Attributes:
        title: what the rows are called.
        trainers: the GPU of each; ranks of one trainer.
        engine: the GPUs of the engine, one for each tensor-parallel rank.
        orders: what trainers are told.
        variants: what is measured; the first is what the target for the first update is for.
        target: for the time of an update over that of plain copies.
    """

    title: str
    trainers: Sequence[int]
    engine: Sequence[int]
    orders: Orders
    variants: Sequence[Variant]
    target: str

    @property
    def gpus(self) -> int:
        """How many it needs."""
        return 1 + max(*self.trainers, *self.engine)


def run_engine(model: str, gpus: Sequence[int], layers: int | None, narrow: int, pipe: Connection) -> None:
    """A vLLM with the shapes of a real model, dense or mixture, and weights of no meaning, a rank on each GPU.

    With one rank it is in this process. It sees the other GPUs as well, behind its own, so that it can read what
    trainers lend there. Without CUDA each rank has a core of its own. An order is what all ranks are to call, and its
    arguments.
    """
    if torch.version.cuda is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        names = visible.split(",")
        own = [names[gpu] for gpu in gpus]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join([*own, *(name for name in names if name not in own)])
    else:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        if len(gpus) > 1:
            cores = sorted(os.sched_getaffinity(0))
            os.environ.setdefault(CORES, "|".join(str(cores[rank % len(cores)]) for rank in range(len(gpus))))
    os.environ.update(SPARED, VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_ALLOW_INSECURE_SERIALIZATION="1")
    from ckpt_transport_vllm.server import EXTENSION

    with tempfile.TemporaryDirectory() as folder:
        llm, config = start(
            Path(folder),
            model,
            "bf16",
            layers,
            narrow=narrow,
            worker_extension_cls=EXTENSION,
            gpu_memory_utilization=MEMORY_SHARE,
            tensor_parallel_size=len(gpus),
        )
        attached = llm.collective_rpc("ckpt_transport_attach", args=("", engine_of(gpus)))
        assert not any(each.get("error") for each in attached), attached
        addresses = [each["address"] for each in attached]
        shapes = dict(names_of(config))
        llm.collective_rpc(warm_up, args=(shapes,))
        warmed = [warmed_up(address) for address in addresses]
        pipe.send((shapes, addresses, warmed))
        while (order := pipe.recv())[0] != "stop":
            pipe.send(llm.collective_rpc(order[0], args=order[1:]))


def warm_up(worker: Any, shapes: Shapes) -> None:
    """What an RPC has done where the engine has the files of a checkpoint, which this one has not."""
    from ckpt_transport_vllm.extension import _sinks

    within = getattr(worker, "worker", worker)  # in one process a call gets what is around the worker
    _sinks(within)[False].warm_up([TensorSpec(name, "BF16", shape) for name, shape in shapes.items()])


def engine_of(gpus: Sequence[int]) -> str:
    """The name of an engine with ranks on these GPUs."""
    return ENGINE if len(gpus) > 1 else ""


def attach_loader(worker: Any, engine: str) -> str:
    """Make a worker updatable at one more address, where each version is loaded by its loader and compared with what
    the replay of it leaves."""
    from ckpt_transport_vllm.engine import VllmEngine
    from ckpt_transport_vllm.quiesce import WorkerGate
    from ckpt_transport_vllm.updated_model import UpdatedModel

    within = getattr(worker, "worker", worker)
    config = within.vllm_config
    target = UpdatedModel(within.model_runner.get_model(), config.model_config, config)
    group, label = engine and f"{engine}#loader", f"the loader of rank {within.rank}"
    made = VllmEngine(lambda: target, WorkerGate(within), lambda: None, group, label, verify_always=True)
    sink = Sink(made).start()
    Finalize(None, sink.close, exitpriority=10)
    return sink.address


def warmed_up(address: str) -> str:
    """Wait until a warm-up has ended; returns what it says of itself."""
    deadline = time.monotonic() + WARM_UP_SECONDS
    while not (said := ask_version(address).warm_up).startswith(("warmed up", "could not")):
        assert time.monotonic() < deadline, f"the engine {said or 'does not warm up'}"
        time.sleep(0.1)
    return said


def sums(worker: Any) -> dict[str, int]:
    """Of all parameters of a worker, by name."""
    return {name: weighted_sum(tensor) for name, tensor in worker.model_runner.get_model().named_parameters()}


def measure(
    situation: VllmSituation, rounds: int, layers: int | None, narrow: int, attempts: Attempts
) -> Iterator[Row]:
    """A row for each variant, of one start of the engine; for its first update; for ``auto`` against the best by
    name."""
    title = situation.title
    console.print(f"{title} ...")
    engine = ParentPeer(run_engine, "mixture", situation.engine, layers, narrow)
    found: dict[Variant, Brought] = {}
    try:
        shapes, addresses, warmed = engine.answer()
        by_loader = engine.call(attach_loader, engine_of(situation.engine))
        console.print(f"  {len(shapes):,} tensors, {size(shapes) / 1e9:.2f} GB; {'; '.join(warmed)}")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        parts = len(situation.engine)
        with trainer_ranks(device, situation.trainers) as ranks:
            trainers = Trainers(ranks, situation.orders, shapes, addresses, situation.engine, parts)
            for number, variant in enumerate(situation.variants):
                rows = _variant(situation, trainers, by_loader, engine, variant, 2 * number + 1, rounds, found)
                yield from attempts.rows(f"{title}: {variant}", rows)
    finally:
        engine.stop()
    yield from against_named(title, found)


def _variant(
    situation: VllmSituation,
    trainers: Trainers,
    by_loader: Sequence[str],
    engine: Peer,
    variant: Variant,
    version: int,
    rounds: int,
    found: dict[Variant, Brought],
) -> Iterator[Row]:
    title = f"{situation.title}: {variant}"
    with opened(trainers.ranks, variant):
        brought = _bring(trainers, by_loader, engine, version, rounds)
    console.print(f"  {variant}: {brought.says}")
    copy = "plain copies of a rank's part" if trainers.parts > 1 else "plain copies of as many bytes"
    yield brought.row(title, copy, situation.target)
    if not found:
        yield first_row(title, brought)
    found[variant] = brought


def _bring(trainers: Trainers, by_loader: Sequence[str], engine: Peer, version: int, rounds: int) -> Brought:
    """Updates with which the trainer has warmed up.

    At their end the loader loads the first version, which was rehearsed and replayed, and what it makes is compared.

    Args:
        by_loader: where it is loaded so.
    """
    trainers.have(version)
    warmed = trainers.warm_up()
    if warmed is not None:
        how = warmed.in_place or "staged"
        console.print(
            f"  the trainer has warmed up with the engine: {milliseconds(warmed.wall)} ({warmed.said}); {how}"
        )
    first = trainers.update()
    replayed = engine.call(sums)
    trainers.have(version + 1)
    trainers.update()
    then, limits = trainers.counted(rounds)
    other = engine.call(sums)
    trainers.have(version)
    replace(trainers, addresses=by_loader).update()
    loaded = engine.call(sums)
    assert loaded != other, "versions differ"
    return Brought(warmed, first, then, limits, compare(loaded, replayed))


def compare(loaded: Sequence[Mapping[str, int]], replayed: Sequence[Mapping[str, int]]) -> int:
    """See that each rank has, of a version that was replayed, what the loader makes; returns how many parameters."""
    for rank, (made, found) in enumerate(zip(loaded, replayed, strict=True)):
        wrong = [name for name, each in made.items() if each != found[name]]
        assert not wrong, f"rank {rank}: {len(wrong)} parameters are not what the loader makes, the first {wrong[0]}"
    return sum(map(len, loaded))


def first_row(title: str, brought: Brought) -> Row:
    """The first update of an engine that has warmed up, and whose trainer has, against later ones."""
    first = brought.first
    held = f"{milliseconds(first.wall)}, held {milliseconds(first.held)} ({first.said})"
    then = f"then {milliseconds(brought.wall)}, held {milliseconds(brought.held)}"
    ratio = first.wall / brought.wall
    return Row(
        f"{title}, first update, engine and trainer warmed up", ratio, "later updates", "<=1.5", f"{held}; {then}"
    )
