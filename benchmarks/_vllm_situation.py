"""Measures updates of a real vLLM from a trainer that lends its weights, on the engine's GPU or on another."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks._gpu_worker import Peer
from benchmarks._models import Shapes
from benchmarks._row import Row
from benchmarks._situation import Brought, console, milliseconds
from benchmarks._trainer import Timed, run_trainer
from benchmarks._vllm_engine import names_of, start
from ckpt_transport import ask_version
from ckpt_transport.planning import TensorSpec

WARM_UP_SECONDS = 120
MEMORY_SHARE = 0.4
"""Of a GPU's memory that vLLM takes: the trainer has as many weights beside it, and so has the comparison."""
SPARED = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
TRANSPORTS = ("auto", "cuda_ipc")


def run_engine(gpu: int, layers: int | None, pipe: Connection) -> None:
    """A vLLM in this process, with the shapes of half of Qwen3-30B-A3B and weights of no meaning."""
    if torch.version.cuda is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    os.environ.update(SPARED, VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_ALLOW_INSECURE_SERIALIZATION="1")
    from ckpt_transport_vllm.server import EXTENSION

    with tempfile.TemporaryDirectory() as folder:
        llm, config = start(
            Path(folder),
            "mixture",
            "bf16",
            layers,
            worker_extension_cls=EXTENSION,
            gpu_memory_utilization=MEMORY_SHARE,
        )
        (attached,) = llm.collective_rpc("ckpt_transport_attach")
        assert not attached["error"], attached["error"]
        shapes = dict(names_of(config))
        llm.collective_rpc(warm_up, args=(shapes,))
        warmed = warmed_up(attached["address"])
        pipe.send((shapes, attached["address"], warmed))
        loaded: list[torch.Tensor] = []
        while (order := pipe.recv()[0]) != "stop":
            if order == "keep":
                (loaded,) = llm.collective_rpc(copies)
                pipe.send(len(loaded))
            else:
                pipe.send(llm.collective_rpc(differing, args=(loaded,))[0])


def warm_up(worker: Any, shapes: Shapes) -> None:
    """What an RPC has done where the engine has the files of a checkpoint, which this one has not."""
    from ckpt_transport_vllm.extension import _sinks

    within = getattr(worker, "worker", worker)  # in one process a call gets what is around the worker
    _sinks(within)[False].warm_up([TensorSpec(name, "BF16", shape) for name, shape in shapes.items()])


def warmed_up(address: str) -> str:
    """Wait until a warm-up has ended; returns what it says of itself."""
    deadline = time.monotonic() + WARM_UP_SECONDS
    while not (said := ask_version(address).warm_up).startswith(("warmed up", "could not")):
        assert time.monotonic() < deadline, f"the engine {said or 'does not warm up'}"
        time.sleep(0.1)
    return said


def copies(worker: Any) -> list[torch.Tensor]:
    """Of all parameters."""
    return [parameter.detach().clone() for parameter in worker.model_runner.get_model().parameters()]


def differing(worker: Any, kept: Sequence[torch.Tensor]) -> list[str]:
    """Names of parameters that are not as their copies, bit by bit."""
    named = worker.model_runner.get_model().named_parameters()
    return [
        name
        for (name, one), other in zip(named, kept, strict=True)
        if not torch.equal(one.detach().reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    ]


def measure(title: str, trainer_gpu: int, engine_gpu: int, target: str, rounds: int, layers: int | None) -> list[Row]:
    """Rows for each transport; for the first update; and for ``auto`` against the best by name."""
    console.print(f"{title} ...")
    engine = Peer(run_engine, engine_gpu, layers)
    shapes, address, warmed = engine.answer()
    console.print(f"  {warmed}")
    trainer = Peer(run_trainer, 0, 1, f"cuda:{trainer_gpu}" if torch.cuda.is_available() else "cpu")
    found: dict[str, Brought] = {}
    for transport in TRANSPORTS if torch.cuda.is_available() else ("auto", "shm"):
        trainer.call("open", transport, "")
        trainer.call("have", shapes, 1, "device")
        first: Timed = trainer.call("lend_and_update", [address])
        if not found:
            engine.call("keep")
        trainer.call("have", shapes, 2, "device")
        trainer.call("lend_and_update", [address])
        then, limits = [], []
        for _ in range(rounds):
            limits.append(trainer.call("link", engine_gpu))
            then.append(trainer.call("lend_and_update", [address]))
        trainer.call("have", shapes, 1, "device")
        trainer.call("lend_and_update", [address])
        wrong = engine.call("differing")
        assert not wrong, f"{len(wrong)} parameters are not what the loader made, the first {wrong[0]}"
        found[transport] = Brought(first, then, limits, 0)
        console.print(f"  {transport}: {found[transport].says}")
    trainer.stop()
    engine.stop()
    auto = found["auto"]
    best = min((transport for transport in found if transport != "auto"), key=lambda named: found[named].wall)
    copy = "plain copies of as many bytes"
    return [
        *(
            Row(f"{title}: {transport}", brought.wall / brought.limit, copy, target, brought.says)
            for transport, brought in found.items()
        ),
        Row(
            f"{title}: auto",
            auto.wall / found[best].wall,
            f"{best} by name",
            "<=1.05",
            f"{milliseconds(auto.wall)}, {milliseconds(found[best].wall)}",
        ),
        Row(
            f"{title}: first update after warming up",
            auto.first.wall / auto.wall,
            "steady state",
            "<=1.5",
            f"{milliseconds(auto.first.wall)}, held {milliseconds(auto.first.held)}; then held "
            f"{milliseconds(median(timed.held for timed in auto.then))}",
        ),
    ]
