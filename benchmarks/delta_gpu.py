"""Measures on one GPU what a delta takes: to find it, to commit it, to take it back; and which part of the bytes it is.

A base and a new version of half of Qwen3-30B-A3B, 31.2 GB each, are on the GPU, and a real vLLM that serves the base.
Without vLLM, a module of the same shapes serves it. Some elements of the new version differ at random places. After
each commit the digest of all that is served is that of a full update, and after each rollback that of the base.

With ``--weights fp8`` engines serve FP8, with a scale for each block, that a source makes of BF16 weights: versions are
compared after that, and shares are of BF16 elements.

It ends within ``--seconds`` and prints what was measured by then. The table comes last. Small, on a CPU:
``python -m benchmarks.delta_gpu --small``.
"""

from __future__ import annotations

import enum
import importlib.util
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks._delta_engine import measure
from benchmarks._fp8_versions import MODE, Fp8Versions
from benchmarks._models import Holding, mixture, named_as_modules, narrowed
from benchmarks._report import Row, report
from benchmarks._versions import Bf16Versions
from benchmarks._vllm_engine import LAYERS, names_of, start
from benchmarks._vllm_situation import SPARED
from ckpt_transport.planning import TensorSpec

MEMORY_SHARE = 0.3
"""Of the GPU's memory that vLLM takes; both versions are beside it, and an undo log."""
SPARE_SECONDS = 30
"""So long before the end a vLLM that has measured nothing makes way for a module."""
PRINTING_SECONDS = 2
SMALL = {
    "vocab_size": 512,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 128,
    "moe_intermediate_size": 128,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}
"""The sizes of a small model, of whole blocks of FP8."""
SMALL_LAYERS = 2
MODEL = {True: "mixture", False: "dense"}
"""By whether there is a GPU: on a CPU vLLM processes mixtures when it loads them, so that no delta fits them."""
FACTOR = 256
"""By how many times the tensors of a small module have fewer rows."""
console = Console(stderr=True)
Say = Callable[[str], None]


class Served(enum.StrEnum):
    """What engines serve."""

    BF16 = "bf16"
    FP8 = "fp8"


VERSIONS = {Served.BF16: Bf16Versions, Served.FP8: Fp8Versions}
MODES = {Served.BF16: "bf16", Served.FP8: MODE}
NAMES = {Served.BF16: "", Served.FP8: ", FP8"}


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        small: whether weights have some MB.
        model, layers: of vLLM, dense or mixture; a module has the shapes of the mixture.
        rounds: repetitions, of which the middle counts.
    """

    small: bool
    model: str
    layers: int
    rounds: int


Measuring = Callable[[Scale, Served, Say], Iterator[Row]]


def in_vllm(scale: Scale, weights: Served, say: Say) -> Iterator[Row]:
    """A vLLM in this process, with weights of no meaning."""
    os.environ.update(SPARED, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    import vllm

    from ckpt_transport_vllm.engine import VllmEngine
    from ckpt_transport_vllm.quiesce import WorkerGate
    from ckpt_transport_vllm.updated_model import UpdatedModel

    if not torch.cuda.is_available():
        from vllm import _custom_ops

        from tests.vllm import cpu_fp8

        _custom_ops._supports_onednn = False  # else it packs weights, and no delta fits them
        if weights is Served.FP8:
            cpu_fp8.register()
    more: dict[str, Any] = {"hf_overrides": SMALL} if scale.small else {}

    def within(worker: Any, specs: list[TensorSpec]) -> Iterator[Row]:
        inner = getattr(worker, "worker", worker)  # in one process a call gets what is around the worker
        settings = inner.vllm_config
        target = UpdatedModel(inner.model_runner.get_model(), settings.model_config, settings)
        engine = VllmEngine(lambda: target, WorkerGate(inner), lambda: None, "", "vLLM")

        def measured() -> Iterator[Row]:
            yield from measure(
                engine, VERSIONS[weights](specs, engine.device), f"vLLM{NAMES[weights]}", scale.rounds, say
            )

        return measured()

    with tempfile.TemporaryDirectory() as folder:
        llm, config = start(
            Path(folder),
            scale.model,
            MODES[weights],
            scale.layers,
            gpu_memory_utilization=MEMORY_SHARE,
            **more,
        )
        say(f"vLLM {vllm.__version__} serves")
        if scale.small:
            config.update({name: size for name, size in SMALL.items() if hasattr(config, name)})
        specs = [TensorSpec(name, "BF16", shape) for name, shape in names_of(config)]
        yield from llm.collective_rpc(within, args=(specs,))[0]


def in_module(scale: Scale, weights: Served, say: Say) -> Iterator[Row]:
    """A module of the same shapes."""
    from ckpt_transport_torch import TorchEngine

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    shapes = mixture(scale.layers)
    shapes = named_as_modules(narrowed(shapes, FACTOR) if scale.small else shapes)
    versions = VERSIONS[weights]([TensorSpec(name, "BF16", shape) for name, shape in shapes.items()], device)
    engine = TorchEngine(Holding(versions.specs, device))
    yield from measure(engine, versions, f"a module{NAMES[weights]}", scale.rounds, say)


def run(target: Measuring, scale: Scale, weights: Served, pipe: Connection) -> None:
    """Measure, and send each row as soon as it is known."""
    began = time.monotonic()
    try:
        for row in target(scale, weights, lambda text: pipe.send(f"{time.monotonic() - began:6.1f} s  {text}")):
            pipe.send(row)
    except Exception:
        pipe.send(traceback.format_exc())
    pipe.send(None)


def rows_of(target: Measuring, scale: Scale, weights: Served, first: float, last: float) -> list[Row]:
    """What another process measures.

    Args:
        target, scale, weights: with what, how much, and of which kind.
        first, last: when there must be a row, and when all must be there; else the process is ended.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run, args=(target, scale, weights, theirs))
    process.start()
    theirs.close()
    found: list[Row] = []
    try:
        while ours.poll(max(0.0, (last if found else first) - time.monotonic())):
            said = ours.recv()
            if said is None:
                process.join(max(0.0, last - time.monotonic()))
                break
            if isinstance(said, Row):
                found.append(said)
            else:
                console.print(said, highlight=False)
        else:
            console.print(f"{target.__name__}: the time is over")
    except EOFError:
        console.print(f"{target.__name__}: its process has ended")
    finally:
        process.kill()
        process.join()
    return found


def main(
    small: Annotated[bool, typer.Option(help="Weights of some MB, on a CPU too.")] = False,
    module: Annotated[bool, typer.Option(help="No vLLM, even where there is one.")] = False,
    weights: Annotated[Served, typer.Option(help="That engines serve; FP8 is made of BF16 on the way.")] = Served.BF16,
    model: Annotated[str, typer.Option(help="Of vLLM: dense or mixture; by default what takes deltas there.")] = "",
    layers: Annotated[int | None, typer.Option(help="Of the model; by default half of the real one's, or few.")] = None,
    rounds: Annotated[int, typer.Option(help="Repetitions, of which the middle counts.")] = 5,
    seconds: Annotated[float, typer.Option(help="After which all ends.")] = 115,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file, and a page beside it.")] = None,
) -> None:
    """Measure deltas on one GPU. Needs 130 GB of its memory at full scale."""
    last = time.monotonic() + seconds - PRINTING_SECONDS
    model = model or MODEL[torch.cuda.is_available()]
    scale = Scale(small, model, layers or (SMALL_LAYERS if small else LAYERS[model]), rounds)
    found: list[Row] = []
    if not module and importlib.util.find_spec("vllm") is not None:
        found = rows_of(in_vllm, scale, weights, last - SPARE_SECONDS, last)
    if not found:
        found = rows_of(in_module, scale, weights, last, last)
    report(found, json)


if __name__ == "__main__":
    typer.run(main)
