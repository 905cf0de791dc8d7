"""Measures updates of a real vLLM by trainers that lend their weights, or have them in a pool of the host."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks._gpu_worker import ParentPeer, Peer
from benchmarks._models import Shapes
from benchmarks._row import Row
from benchmarks._situation import Brought, ask_all, console, links
from benchmarks._trainer import Timed, milliseconds, run_trainer
from benchmarks._vllm_engine import names_of, start
from benchmarks._weighted_sums import weighted_sum
from ckpt_transport import ask_version
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
        lent: whether the weights are on the trainers' GPUs; else in a pool of the host.
        transports: what is measured; the first is ``auto``.
        target: for the time of an update over that of plain copies.
        commit: how the version is taken, as the setting.
    """

    title: str
    trainers: Sequence[int]
    engine: Sequence[int]
    lent: bool
    transports: Sequence[str]
    target: str
    commit: str = "auto"

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
        attached = llm.collective_rpc("ckpt_transport_attach", args=("", ENGINE if len(gpus) > 1 else ""))
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


def have_loader_load(worker: Any, loads: bool) -> None:
    """From now on have the loader load each version, which its replay is compared with; or have it only replayed."""
    from ckpt_transport_vllm.extension import _sinks

    within = getattr(worker, "worker", worker)
    engine: Any = _sinks(within)[False]._engine
    engine._loading._verify_always = loads


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


def measure(situation: VllmSituation, rounds: int, layers: int | None, narrow: int) -> list[Row]:
    """Rows for each transport; for the first update; and for ``auto`` against the best by name."""
    console.print(f"{situation.title} ...")
    engine = ParentPeer(run_engine, "mixture", situation.engine, layers, narrow)
    try:
        shapes, addresses, warmed = engine.answer()
        for said in warmed:
            console.print(f"  {said}")
        found: dict[str, Brought] = {}
        with tempfile.TemporaryDirectory() as folder:
            place = "cuda:{}" if torch.cuda.is_available() else "cpu"
            size = len(situation.trainers)
            trainers = [Peer(run_trainer, rank, size, place.format(gpu)) for rank, gpu in enumerate(situation.trainers)]
            try:
                for transport in situation.transports:
                    ask_all(trainers, "open", transport, f"ipc://{folder}/{transport}", situation.commit)
                    found[transport] = _bring(situation, trainers, engine, shapes, addresses, rounds)
                    console.print(f"  {transport}: {found[transport].says}")
            finally:
                for trainer in trainers:
                    trainer.stop()
    finally:
        engine.stop()
    return _rows(situation, found)


def _bring(
    situation: VllmSituation,
    trainers: Sequence[Peer],
    engine: Peer,
    shapes: Shapes,
    addresses: Sequence[str],
    rounds: int,
) -> Brought:
    """Updates over one transport, with which its trainer has warmed up. At its end the loader loads the first version,
    which was rehearsed and replayed."""

    def have(version: int) -> None:
        ask_all(trainers, "have", shapes, version, "device" if situation.lent else "host")
        if not situation.lent:
            ask_all(trainers, "register")

    def update() -> Timed:
        timed: Timed = ask_all(trainers, "lend_and_update" if situation.lent else "update", addresses)[0]
        return timed

    have(1)
    warmed: Timed = ask_all(trainers, "warm_up", addresses, situation.lent)[0]
    how = warmed.in_place or "staged"
    console.print(f"  the trainer has warmed up with the engine: {milliseconds(warmed.wall)} ({warmed.said}); {how}")
    first = update()
    replayed = engine.call(sums)
    have(2)
    update()
    then, limits = [], []
    for _ in range(rounds):
        limits.append(max(links(trainers, situation.engine, len(situation.engine))))
        then.append(update())
    have(1)
    engine.call(have_loader_load, True)
    update()
    engine.call(have_loader_load, False)
    for rank, loaded in enumerate(engine.call(sums)):
        wrong = [name for name, each in loaded.items() if each != replayed[rank][name]]
        assert not wrong, f"{len(wrong)} parameters were not what the loader makes, the first {wrong[0]}"
    return Brought(first, then, limits, 0)


def _rows(situation: VllmSituation, found: Mapping[str, Brought]) -> list[Row]:
    title = situation.title
    copy = "plain copies of a rank's part" if len(situation.engine) > 1 else "plain copies of as many bytes"
    rows = [
        Row(f"{title}: {transport}", brought.wall / brought.limit, copy, situation.target, brought.says)
        for transport, brought in found.items()
    ]
    if (auto := found.get("auto")) is None:
        return rows
    named = [transport for transport in found if transport != "auto"]
    if named:
        best = min(named, key=lambda transport: found[transport].wall)
        detail = f"{milliseconds(auto.wall)}, {milliseconds(found[best].wall)}"
        rows.append(Row(f"{title}: auto", auto.wall / found[best].wall, f"{best} by name", "<=1.05", detail))
    held = median(timed.held for timed in auto.then)
    detail = f"{milliseconds(auto.first.wall)}, held {milliseconds(auto.first.held)}; then held {milliseconds(held)}"
    ratio = auto.first.wall / auto.wall
    return [*rows, Row(f"{title}: first update, engine and trainer warmed up", ratio, "steady state", "<=1.5", detail)]
