"""Measures what requests notice of a staged update of a real vLLM, and of taking it back.

A vLLM with the shapes of half of Qwen3-30B-A3B (31.2 GB) answers four requests at a time, one decoded token after the
other, while a trainer brings versions from the host's memory. Staged on the GPU, and, with ``staging_budget=1``, in
page-locked memory of the host. Times are those of the ends of decode steps. Needs vLLM and a GPU with 110 GiB free;
small, on a CPU: ``python -m benchmarks.staged_vllm --model dense --layers 1``.
"""

from __future__ import annotations

import enum
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console

from benchmarks._gpu_worker import Peer, host_to_device
from benchmarks._models import Shapes, size
from benchmarks._report import Row, report
from benchmarks._trainer import Timed, milliseconds, run_trainer
from benchmarks._vllm_engine import names_of, start
from benchmarks._vllm_situation import MEMORY_SHARE, SPARED, warm_up, warmed_up

PLACES: Mapping[str, tuple[str, str]] = {"GPU": ("64GiB", "<=1"), "host": ("1", "<=1.45")}
"""Where a version is staged: ``staging_budget``, and the target."""
ON_GPU_SECONDS = 0.055
"""The exchange of 31.2 GB in one launch is 33 ms."""
AROUND_SECONDS = 0.5
"""Looked at before and after an update."""
ANSWERED, PROMPT, TOKENS = 4, 8, 240
PIECE_BYTES = 64 << 20
console = Console(stderr=True)


class Model(enum.StrEnum):
    """Shapes: of half of Qwen3-30B-A3B, and of Qwen3-8B."""

    MIXTURE = "mixture"
    DENSE = "dense"


class Step(NamedTuple):
    """A decode step: when it ended, and how many tokens it made."""

    ended: float
    tokens: int


def answer(budget: str, model: str, layers: int | None, pipe: Connection) -> None:
    """A vLLM in this process that answers all the time; at each word it sends the steps since the last."""
    os.environ.update(SPARED, VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_ALLOW_INSECURE_SERIALIZATION="1")
    if budget:
        os.environ["CKPT_TRANSPORT_STAGING_BUDGET"] = budget
    from vllm import SamplingParams

    from ckpt_transport_vllm.server import EXTENSION

    sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0.0, detokenize=False)
    with tempfile.TemporaryDirectory() as folder:
        llm, config = start(
            Path(folder), model, "bf16", layers, worker_extension_cls=EXTENSION, gpu_memory_utilization=MEMORY_SHARE
        )
        (attached,) = llm.collective_rpc("ckpt_transport_attach")
        assert not attached["error"], attached["error"]
        shapes = dict(names_of(config))
        llm.collective_rpc(warm_up, args=(shapes,))
        pipe.send((shapes, attached["address"], warmed_up(attached["address"])))
        steps: list[Step] = []
        names = count()
        for made in decoded(llm.llm_engine, names, sampling):
            steps.append(Step(time.monotonic(), made))
            if pipe.poll():
                if pipe.recv()[0] == "stop":
                    return
                pipe.send(steps)
                steps = steps[-1:]


def decoded(engine: Any, names: Iterator[int], sampling: Any) -> Iterator[int]:
    """Decode for ever, for so many requests at a time; yields at each step how many tokens it made."""
    while True:
        while engine.get_num_unfinished_requests() < ANSWERED:
            name = next(names)
            engine.add_request(
                str(name), {"prompt_token_ids": [1 + (name + at) % 97 for at in range(PROMPT)]}, sampling
            )
        yield len(engine.step())


class Noticed(NamedTuple):
    """What requests noticed of one call.

    Attributes:
        timed: the call.
        tokens: made in a second by the steps that ended between the call and the order to hold.
        gap: the longest between two decode steps.
    """

    timed: Timed
    tokens: float
    gap: float


def noticed(call: str, engine: Peer, trainer: Peer, address: str) -> Noticed:
    """Have the trainer do something, and look at the steps around it."""
    time.sleep(AROUND_SECONDS)
    engine.call("steps")
    began = time.monotonic()
    timed: Timed = trainer.call(call, [address])
    held_from = time.monotonic() - timed.held
    time.sleep(AROUND_SECONDS)
    steps: Sequence[Step] = engine.call("steps")
    gap = max(after.ended - before.ended for before, after in pairwise(steps))
    return Noticed(timed, rate([step for step in steps if began < step.ended <= held_from]), gap)


def rate(steps: Sequence[Step]) -> float:
    """Tokens in a second, from the end of the first of these steps to that of the last; 0 for fewer than two."""
    if len(steps) < 2:
        return 0.0
    return sum(step.tokens for step in steps[1:]) / (steps[-1].ended - steps[0].ended)


def undisturbed(engine: Peer) -> tuple[float, float]:
    """Tokens in a second, and the seconds of a decode step, while nothing else happens."""
    engine.call("steps")
    time.sleep(4 * AROUND_SECONDS)
    steps: Sequence[Step] = engine.call("steps")
    taken = [after.ended - before.ended for before, after in pairwise(steps)]
    return rate(steps), median(taken)


def measure(where: str, rounds: int, model: str, layers: int | None) -> Iterator[Row]:
    """The rows of one place."""
    budget, target = PLACES[where]
    console.print(f"staged on the {where} ...")
    engine = Peer(answer, budget, model, layers)
    shapes, address, warmed = engine.answer()
    console.print(f"  {warmed}")
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    trainer = Peer(run_trainer, 0, 1, device)
    trainer.call("open", "auto", "", "in_place")
    trainer.call("have", shapes, 1, "device")
    trainer.call("lend_and_update", [address])
    console.print("  the first version is served")
    trainer.call("open", "auto", "", "staged")
    trainer.call("have", shapes, 2, "host")
    console.print(f"  registered in {trainer.call('register'):.1f} s")
    first: Timed = trainer.call("update", [address])
    console.print(f"  first staged update {milliseconds(first.wall)}, held {milliseconds(first.held)}")
    free = _free()
    tokens, step = undisturbed(engine)
    console.print(f"  undisturbed {tokens:.0f} tokens per second, a step {milliseconds(step)}")
    updates, rollbacks = [], []
    for _ in range(rounds):
        updates.append(noticed("update", engine, trainer, address))
        rollbacks.append(noticed("rollback", engine, trainer, address))
        console.print(f"  {updates[-1]}\n  {rollbacks[-1]}")
    yield from _rows(where, target, shapes, tokens, step, updates, rollbacks)
    console.print(f"  {max(_free() - free, 0) / (1 << 30):.2f} GiB of GPU memory less than after the second update")
    trainer.stop()
    engine.stop()


def _rows(
    where: str,
    target: str,
    shapes: Shapes,
    tokens: float,
    step: float,
    updates: Sequence[Noticed],
    rollbacks: Sequence[Noticed],
) -> Iterator[Row]:
    limit, against = (
        (ON_GPU_SECONDS, "55 ms") if where == "GPU" else (_host_link(size(shapes)), "copying from the host")
    )
    for what, calls in (("update", updates), ("rollback", rollbacks)):
        held = median(call.timed.held for call in calls)
        gap = median(call.gap for call in calls)
        wall = median(call.timed.wall for call in calls)
        yield Row(
            f"staged on the {where}: {what}, held",
            held / limit,
            against,
            target,
            f"{milliseconds(held)} of {milliseconds(wall)}, limit {milliseconds(limit)}",
        )
        yield Row(
            f"staged on the {where}: {what}, longest gap between two tokens",
            gap / (held + 1.5 * step),
            "held and 1.5 decode steps",
            "<=1",
            f"{milliseconds(gap)}, a step {milliseconds(step)}",
        )
    staging = median(call.tokens for call in updates)
    yield Row(
        f"staged on the {where}: tokens per second while a version is brought",
        staging / tokens,
        "undisturbed",
        ">=0.9",
        f"{staging:.0f} of {tokens:.0f}",
    )


def _host_link(nbytes: int) -> float:
    """Seconds that a plain copy of so many bytes takes from page-locked memory to the GPU."""
    if not torch.cuda.is_available():
        return ON_GPU_SECONDS
    piece = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    return host_to_device(piece, PIECE_BYTES) * nbytes / piece.numel()


def _free() -> int:
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0


def main(
    only: Annotated[str, typer.Option(help="GPU or host: where versions are staged. Both by default.")] = "",
    rounds: Annotated[int, typer.Option(help="Updates, each taken back.")] = 3,
    model: Annotated[Model, typer.Option(help="What the vLLM serves.")] = Model.MIXTURE,
    layers: Annotated[int | None, typer.Option(help="Of the model; by default all that it is to have.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file, and a page beside it.")] = None,
) -> None:
    """Time staged updates and rollbacks of a real vLLM that answers requests."""
    rows = [row for where in PLACES if only in ("", where) for row in measure(where, rounds, model.value, layers)]
    report(rows, json)


if __name__ == "__main__":
    typer.run(main)
