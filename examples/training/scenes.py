"""The scenes: a model answers in this process, and a trainer of two ranks brings it each of its steps."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch

from ckpt_transport_torch import Attachment, attach
from examples.shared.display import Display, milliseconds
from examples.trainers.model import model
from examples.training.curve import curve
from examples.training.result import Result, problems
from examples.training.task import loss_of
from examples.training.trainer import Step
from tests.support.serving import ServeError, last_words

RANKS = 2
TIMEOUT = 240.0
STOP_TIMEOUT = 20.0
BAR_WIDTH = 24


def play(display: Display, folder: Path, count: int, rate: float) -> Result:
    """Serve a model while a trainer improves it.

    Args:
        display: where to print.
        folder: for the trainer's log.
        count: steps of the training.
        rate: at which it learns.

    Raises:
        ServeError: the trainer failed, or did not end in time.
    """
    display.heading("A model answers in this process")
    served = model().to(torch.bfloat16)
    before = _loss(served)
    with attach(served, label="server") as attachment, _answering(served, attachment) as answers:
        display.line(f"its loss is {before:.2e}; it listens at {attachment.address}")
        display.heading(f"FSDP2 on {RANKS} gloo ranks trains it for {count} steps, and publishes each")
        steps = []
        for step in _train(folder / "trainer.log", count, rate, attachment.address):
            steps.append(step)
            display.line(_drawn(step))
    after = _loss(served)
    losses, pauses = [before, *(step.loss for step in steps)], [step.paused for step in steps]
    display.line(f"loss    {curve(losses, 0.0)}  from {before:.2e} to {after:.2e}")
    display.line(f"pause   {curve(pauses, 0.0)}  at most {milliseconds(max(pauses, default=0.0))}")
    display.heading("Answers")
    display.line(
        f"{sum(answers.values()):,} forward passes were computed meanwhile, by {len(answers)} versions; each was held "
        f"for {milliseconds(max((step.paused for step in steps), default=0.0))} at most"
    )
    found = tuple(problems(count, tuple(steps), (before, after), dict(answers)))
    verdict = f"{count} steps were served as they were trained; the loss went from {before:.2e} to {after:.2e}."
    return Result(problems=found, verdict=verdict, steps=tuple(steps), loss=(before, after), answers=dict(answers))


def _drawn(step: Step) -> str:
    """A step as a line: its bytes as a bar, of all that the version has, and the pause."""
    bar = "█" * max(1, round(BAR_WIDTH * step.nbytes / step.all_nbytes))
    return (
        f"{step.version:8} loss {step.loss:.2e}, pause {milliseconds(step.paused):>9}, {step.changed:6.1%} changed, "
        f"sent {bar:{BAR_WIDTH}} {step.nbytes / 1024:.0f} of {step.all_nbytes / 1024:.0f} KiB"
    )


def _loss(module: torch.nn.Module) -> float:
    return float(loss_of(copy.deepcopy(module).float()).detach())


@contextmanager
def _answering(served: torch.nn.Module, attachment: Attachment) -> Iterator[Counter[str]]:
    """Count forward passes, by the version that was served when each began, for as long as the context lasts."""
    answers: Counter[str] = Counter()
    over = threading.Event()
    request = torch.eye(served[0].in_features, dtype=torch.bfloat16)[:8]  # type: ignore[index]

    def answer() -> None:
        with torch.inference_mode():
            while not over.wait(0.002):
                version = attachment.version
                served(request)
                answers[version] += 1

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join(STOP_TIMEOUT)


def _train(log: Path, count: int, rate: float, sink: str) -> Iterator[Step]:
    """Run the trainer, and yield its steps as they come.

    Raises:
        ServeError: it failed, or did not end in time.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    command = [sys.executable, *torchrun, "-m", "examples.training.trainer", str(count), str(rate), sink]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as errors:
        trainer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environ)
        deadline = threading.Timer(TIMEOUT, trainer.terminate)
        deadline.start()
        try:
            assert trainer.stdout is not None
            yield from (msgspec.json.decode(line, type=Step) for line in trainer.stdout)
            status = trainer.wait(STOP_TIMEOUT)
        finally:
            deadline.cancel()
            if trainer.poll() is None:
                trainer.terminate()
                trainer.wait(STOP_TIMEOUT)
    if status:
        raise ServeError(f"the trainer ended with status {status}:\n{last_words(log)}")
