"""Measures what the caller of an update waits for, by the wall clock, against the link that all bytes must cross.

Each row is a situation: who has the weights, where, and which workers get them. It is measured for ``auto`` and for
transports by name, in turns with plain copies of as many bytes over the same link, which nothing can beat. The first
two updates are not counted, the median of the others is. After each transport every tensor of every worker is compared.

Rows that need more GPUs than there are say so. Usage: ``python -m benchmarks.end_to_end``; small, on a CPU:
``python -m benchmarks.end_to_end --device cpu --scale small``.
"""

from __future__ import annotations

import enum
import importlib.util
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks import _situation, _vllm_situation
from benchmarks._gpu_worker import run_worker_alone
from benchmarks._models import Shapes, dense, mixture, narrowed
from benchmarks._register_tensors import from_gpu, from_host
from benchmarks._report import Row, report
from benchmarks._situation import Situation
from benchmarks._vllm_situation import VllmSituation

console = Console(stderr=True)
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


def vllm_situations(device: Device) -> dict[Name, VllmSituation]:
    """The rows of a real vLLM."""
    lent = ("auto", "shm") if device is Device.CPU else ("auto", "cuda_ipc")
    return {
        Name.VLLM_HERE: VllmSituation("vLLM, mixture, lent on its GPU", (0,), (0,), True, lent, ""),
        Name.VLLM_PEER: VllmSituation("vLLM, mixture, lent on another GPU", (0,), (1,), True, lent, "<=1.4"),
        Name.VLLM_TWO_LENT: VllmSituation("two trainers beside a TP 2 vLLM", (0, 1), (0, 1), True, lent, "<=3"),
        Name.VLLM_TWO_POOL: VllmSituation(
            "TP 2 vLLM from one host pool over shm", (0,), (0, 1), False, ("auto", "shm"), "<=1.12"
        ),
    }


def situations(device: Device, scale: Scale) -> dict[Name, Situation]:
    """The rows that are updates, and what each is held against."""
    eight, moe = (dense(), mixture()) if scale is Scale.FULL else (_small(dense(2)), _small(mixture(1)))
    copy, pcie, nvlink, halves = (
        "a plain copy on the device",
        "plain copies of the same pool to the GPU",
        "plain copies from one GPU to the other",
        "each half of it to its own GPU by plain copies",
    )
    if device is Device.CPU:
        copy = pcie = nvlink = halves = "a plain copy in memory"
    local = ("auto", "shm") if device is Device.CPU else ("auto", "cuda_ipc", "shm")
    near = local if device is Device.CPU else ("auto", "cuda_ipc")
    peer = local if device is Device.CPU else (*near, "nccl")
    here, beside, both = (0,), (1,), (0, 1)
    sources = "two sources, a worker on each GPU"
    return {
        Name.LENT_HERE: Situation("mixture, lent on the worker's GPU", moe, here, here, True, near, copy, "<=3.75"),
        Name.HOST_DENSE: Situation("dense, from the host", eight, here, here, False, local, pcie, "<=1.1"),
        Name.HOST_MIXTURE: Situation("mixture, from the host", moe, here, here, False, local, pcie, "<=1.1"),
        Name.LENT_PEER: Situation("mixture, lent on another GPU", moe, here, beside, True, peer, nvlink, "<=1.4"),
        Name.LENT_UNSEEN: Situation(
            "mixture, lent on a GPU that the worker does not see",
            moe,
            here,
            beside,
            True,
            peer,
            nvlink,
            "<=1.4",
            worker=lambda number: run_worker_alone,
        ),
        Name.TWO_DENSE: Situation(f"dense, {sources}", eight, both, both, False, local, halves, "<=1.1"),
        Name.TWO_MIXTURE: Situation(f"mixture, {sources}", moe, both, both, False, local, halves, "<=1.1"),
    }


def measure(
    only: Collection[Name] = tuple(Name),
    device: Device = Device.CUDA,
    scale: Scale = Scale.FULL,
    rounds: int = 5,
    commit: str = "auto",
    by: Collection[str] = (),
) -> list[Row]:
    """The rows in ``only`` that this machine has enough GPUs for, by these transports, or by all of each row."""
    found: list[Row] = []
    updates = {
        name: replace(each, commit=commit, transports=_chosen(each.transports, by))
        for name, each in situations(device, scale).items()
    }
    engines = {
        name: replace(each, commit=commit, transports=_chosen(each.transports, by))
        for name, each in vllm_situations(device).items()
    }
    there = torch.cuda.device_count() if device is Device.CUDA else 2
    for name in (name for name in Name if name in only):
        if name in engines:
            found += _vllm(engines[name], scale, rounds, there)
        elif name not in updates:
            found += _registered(name, device, scale, rounds)
        elif updates[name].gpus > there:
            console.print(f"{updates[name].title}: not run: needs {updates[name].gpus} GPUs, and there are {there}")
        else:
            found += _situation.measure(updates[name], device, rounds)
    return found


def _chosen(transports: Sequence[str], by: Collection[str]) -> tuple[str, ...]:
    return tuple(transport for transport in transports if not by or transport in by)


def _vllm(situation: VllmSituation, scale: Scale, rounds: int, gpus: int) -> list[Row]:
    """Trainers, and a real vLLM."""
    if importlib.util.find_spec("vllm") is None:
        console.print(f"{situation.title}: not run: needs vLLM")
    elif situation.gpus > gpus:
        console.print(f"{situation.title}: not run: needs {situation.gpus} GPUs, and there are {gpus}")
    elif scale is Scale.SMALL:
        return _vllm_situation.measure(situation, rounds, layers=1, narrow=NARROW)
    else:
        return _vllm_situation.measure(situation, rounds, layers=None, narrow=1)
    return []


def _registered(name: Name, device: Device, scale: Scale, rounds: int) -> list[Row]:
    """Taking weights in, by copying them into the pool of the version before."""
    console.print(f"{name} ...")
    if name is Name.REGISTER_CPU:
        return from_host("dense", dense() if scale is Scale.FULL else _small(dense(2)), rounds)
    if device is Device.CPU:
        console.print(f"{name}: not run: needs a GPU")
        return []
    return from_gpu("mixture", mixture() if scale is Scale.FULL else _small(mixture(1)), rounds)


def _small(shapes: Shapes) -> Shapes:
    return narrowed(shapes, FACTOR)


def main(
    only: Annotated[list[Name] | None, typer.Option(help="A row; may be given several times. All by default.")] = None,
    device: Annotated[Device, typer.Option(help="Where the weights are.")] = Device.CUDA,
    scale: Annotated[Scale, typer.Option(help="Of the weights: 16.4 and 31.2 GB, or some MB.")] = Scale.FULL,
    rounds: Annotated[int, typer.Option(help="Updates that are counted.")] = 5,
    commit: Annotated[
        str, typer.Option(help="As the setting; staged versions are exchanged after they came.")
    ] = "auto",
    by: Annotated[list[str] | None, typer.Option(help="A transport, or auto; all of a row by default.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file, and a page beside it.")] = None,
) -> None:
    """Time updates by the caller's wall clock, against plain copies over the link that they must cross.

    Links of this host are measured first, and kept, so that auto knows them.

    A ratio of 1 is the limit. Beside it stand the milliseconds of the update and of the limit; for how long requests
    stood still; the first update; how much GPU memory an update takes; the phases of the last one, and how long its run
    was expected to take. Needs 100 GiB of host memory at full scale, and 100 GiB of a GPU's for weights that are lent
    on it.
    """
    subprocess.run([sys.executable, "-m", "ckpt_transport", "transports", "--measure"], check=False)
    report(measure(only or tuple(Name), device, scale, rounds, commit, by or ()), json)


if __name__ == "__main__":
    typer.run(main)
