"""Measures what the caller of an update waits for, by the wall clock, against the link that all bytes must cross.

Each row is a situation: who has the weights, where, and which workers get them. It is measured for ``auto``, with
versions that are staged and with such as are written in place, and for transports by name, in turns with plain copies
of as many bytes over the same link, which nothing can beat. Workers, engines and trainers are started once for all of
them. Trainers warm up; the first update after that is shown, the next is not counted, the median of the others is.
After each variant every tensor of every worker is compared.

Rows that need more GPUs than there are say so. With ``--seconds`` no row is begun after that time. Usage: ``python -m
benchmarks.end_to_end``; small, on a CPU: ``python -m benchmarks.end_to_end --device cpu --scale small``. With
``--trace`` an update of the first row is drawn, too: ``python -m benchmarks.picture TRACE PICTURE.svg``.
"""

from __future__ import annotations

import enum
import importlib.util
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from benchmarks import _situation, _vllm_situation
from benchmarks._attempts import Attempts, Seconds, console
from benchmarks._brought import AUTO, Variant
from benchmarks._gpu_worker import run_worker_alone
from benchmarks._models import Shapes, dense, mixture, narrowed
from benchmarks._register_tensors import from_gpu, from_host
from benchmarks._report import Row, report
from benchmarks._situation import Situation
from benchmarks._trainers import LENDS, POOLS
from benchmarks._vllm_situation import VllmSituation

FACTOR = 128
"""By how many times the tensors of the small scale have fewer rows."""
NARROW = 8
"""By how many times the widths of a small vLLM are narrower."""


class Device(enum.StrEnum):
    """Where trainers and workers have their weights."""

    CUDA = "cuda"
    CPU = "cpu"


class Scale(enum.StrEnum):
    """How large the weights are."""

    FULL = "full"
    SMALL = "small"


class Name(enum.StrEnum):
    """The rows, by what comes from where."""

    LENT_HERE = "lent-here"
    HOST_DENSE = "host-dense"
    HOST_MIXTURE = "host-mixture"
    LENT_PEER = "lent-peer"
    LENT_UNSEEN = "lent-unseen"
    TWO_DENSE = "two-dense"
    TWO_MIXTURE = "two-mixture"
    REGISTER_GPU = "register-gpu"
    REGISTER_CPU = "register-cpu"
    VLLM_HERE = "vllm-here"
    VLLM_PEER = "vllm-peer"
    VLLM_TWO_LENT = "vllm-two-lent"
    VLLM_TWO_POOL = "vllm-two-pool"


class Commit(enum.StrEnum):
    """How versions are taken, as the setting."""

    AUTO = "auto"
    IN_PLACE = "in_place"


class Chosen(NamedTuple):
    """What is measured of each row.

    Attributes:
        device: where the weights are.
        scale: how large they are.
        commits: how versions are taken; the first is also that of transports by name.
        by: transports, or ``auto``; all of a row where there is none.
    """

    device: Device = Device.CUDA
    scale: Scale = Scale.FULL
    commits: Sequence[Commit] = tuple(Commit)
    by: Collection[str] = ()

    def variants(self, *named: str) -> tuple[Variant, ...]:
        """``auto`` in every way, and transports by name in one."""
        automatic = [Variant(AUTO, commit.value) for commit in self.commits]
        found = [*automatic, *(Variant(transport, self.commits[0].value) for transport in named)]
        return tuple(variant for variant in found if not self.by or variant.transport in self.by)


def vllm_situations(chosen: Chosen) -> dict[Name, VllmSituation]:
    """The rows of a real vLLM."""
    lent = chosen.variants("shm" if chosen.device is Device.CPU else "cuda_ipc")
    pooled = chosen.variants("shm")
    return {
        Name.VLLM_HERE: VllmSituation("vLLM, mixture, lent on its GPU", (0,), (0,), LENDS, lent, ""),
        Name.VLLM_PEER: VllmSituation("vLLM, mixture, lent on another GPU", (0,), (1,), LENDS, lent, "<=1.4"),
        Name.VLLM_TWO_LENT: VllmSituation("two trainers beside a TP 2 vLLM", (0, 1), (0, 1), LENDS, lent, "<=3"),
        Name.VLLM_TWO_POOL: VllmSituation("TP 2 vLLM from one host pool", (0,), (0, 1), POOLS, pooled, "<=1.12"),
    }


def situations(chosen: Chosen) -> dict[Name, Situation]:
    """The rows that are updates of plain workers, and what each is held against."""
    full = chosen.scale is Scale.FULL
    eight, moe = (dense(), mixture()) if full else (_small(dense(2)), _small(mixture(1)))
    copy, pcie, nvlink, halves = (
        "a plain copy on the device",
        "plain copies of the same pool to the GPU",
        "plain copies from one GPU to the other",
        "each half of it to its own GPU by plain copies",
    )
    local, near, peer = ["cuda_ipc", "shm"], ["cuda_ipc"], ["cuda_ipc", "nccl"]
    if chosen.device is Device.CPU:
        copy = pcie = nvlink = halves = "a plain copy in memory"
        local = near = peer = ["shm"]
    pooled, lent, lent_away = chosen.variants(*local), chosen.variants(*near), chosen.variants(*peer)
    here, beside, both = (0,), (1,), (0, 1)
    sources = "two sources, a worker on each GPU"
    return {
        Name.LENT_HERE: Situation("mixture, lent on the worker's GPU", moe, here, here, LENDS, lent, copy, "<=3.75"),
        Name.HOST_DENSE: Situation("dense, from the host", eight, here, here, POOLS, pooled, pcie, "<=1.1"),
        Name.HOST_MIXTURE: Situation("mixture, from the host", moe, here, here, POOLS, pooled, pcie, "<=1.1"),
        Name.LENT_PEER: Situation("mixture, lent on another GPU", moe, here, beside, LENDS, lent_away, nvlink, "<=1.4"),
        Name.LENT_UNSEEN: Situation(
            "mixture, lent on a GPU that the worker does not see",
            moe,
            here,
            beside,
            LENDS,
            lent_away,
            nvlink,
            "<=1.4",
            worker=lambda number: run_worker_alone,
        ),
        Name.TWO_DENSE: Situation(f"dense, {sources}", eight, both, both, POOLS, pooled, halves, "<=1.1", "<=0.33"),
        Name.TWO_MIXTURE: Situation(f"mixture, {sources}", moe, both, both, POOLS, pooled, halves, "<=1.1"),
    }


def measure(only: Collection[Name], chosen: Chosen, rounds: int, attempts: Attempts) -> Iterator[Row]:
    """The rows in ``only`` that this machine has enough GPUs for, while there is time."""
    updates, engines = situations(chosen), vllm_situations(chosen)
    there = torch.cuda.device_count() if chosen.device is Device.CUDA else 2
    for name in (name for name in Name if name in only):
        if name in engines:
            rows = _vllm(engines[name], chosen.scale, rounds, there, attempts)
        elif name in updates:
            rows = _updates(updates[name], chosen.device, rounds, there, attempts)
        else:
            rows = _registered(name, chosen, rounds)
        yield from attempts.rows(name, rows)


def _updates(situation: Situation, device: Device, rounds: int, gpus: int, attempts: Attempts) -> Iterator[Row]:
    """Trainers, and plain workers."""
    if situation.gpus > gpus:
        console.print(f"{situation.title}: not run: needs {situation.gpus} GPUs, and there are {gpus}")
    else:
        yield from _situation.measure(situation, device, rounds, attempts)


def _vllm(situation: VllmSituation, scale: Scale, rounds: int, gpus: int, attempts: Attempts) -> Iterator[Row]:
    """Trainers, and a real vLLM."""
    if importlib.util.find_spec("vllm") is None:
        console.print(f"{situation.title}: not run: needs vLLM")
    elif situation.gpus > gpus:
        console.print(f"{situation.title}: not run: needs {situation.gpus} GPUs, and there are {gpus}")
    elif scale is Scale.SMALL:
        yield from _vllm_situation.measure(situation, rounds, layers=1, narrow=NARROW, attempts=attempts)
    else:
        yield from _vllm_situation.measure(situation, rounds, layers=None, narrow=1, attempts=attempts)


def _registered(name: Name, chosen: Chosen, rounds: int) -> Iterator[Row]:
    """Taking weights in, by copying them into the pool of the version before."""
    console.print(f"{name} ...")
    full = chosen.scale is Scale.FULL
    if name is Name.REGISTER_CPU:
        yield from from_host("dense", dense() if full else _small(dense(2)), rounds)
    elif chosen.device is Device.CPU:
        console.print(f"{name}: not run: needs a GPU")
    else:
        yield from from_gpu("mixture", mixture() if full else _small(mixture(1)), rounds)


def _small(shapes: Shapes) -> Shapes:
    return narrowed(shapes, FACTOR)


def main(
    only: Annotated[list[Name] | None, typer.Option(help="A row; may be given several times. All by default.")] = None,
    device: Annotated[Device, typer.Option(help="Where the weights are.")] = Device.CUDA,
    scale: Annotated[Scale, typer.Option(help="Of the weights: 16.4 and 31.2 GB, or some MB.")] = Scale.FULL,
    rounds: Annotated[int, typer.Option(min=1, help="Updates that are counted.")] = 5,
    seconds: Seconds = inf,
    commit: Annotated[
        list[Commit] | None, typer.Option(help="As the setting: auto stages where it can. Both by default.")
    ] = None,
    by: Annotated[list[str] | None, typer.Option(help="A transport, or auto; all of a row by default.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file, and a page beside it.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write what happens in an update in place of the row lent-here to this file.")
    ] = None,
) -> None:
    """Time updates by the caller's wall clock, against plain copies over the link that they must cross.

    Links of this host are measured first, and kept, so that auto knows them.

    A ratio of 1 is the limit. Beside it stand the milliseconds of the first update, of the median and of the limit; for
    how long requests stood still; how many tensors were compared; how much GPU memory an update takes; the phases of
    the first and of the median update, and how long its run was expected to take. Needs 100 GiB of host memory at full
    scale, and 100 GiB of a GPU's for weights that are lent on it.
    """
    subprocess.run([sys.executable, "-m", "ckpt_transport", "transports", "--measure"], check=False)
    attempts = Attempts(seconds)
    chosen = Chosen(device, scale, tuple(commit or Commit), by or ())
    report(measure(tuple(Name) if only is None else only, chosen, rounds, attempts), json)
    if trace is not None:
        in_place = Chosen(device, scale, (Commit.IN_PLACE,), (AUTO,))
        _situation.trace(situations(in_place)[Name.LENT_HERE], device, trace)
    attempts.end()


if __name__ == "__main__":
    typer.run(main)
