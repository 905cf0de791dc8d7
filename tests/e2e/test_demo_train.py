"""A trainer that improves a model while it answers, as a user sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from examples.training.curve import curve
from examples.training.result import Result, problems
from examples.training.trainer import Step

STEPS = 3


def test_given_a_trainer_of_two_ranks_when_it_takes_steps_then_each_is_served_and_the_loss_falls(
    tmp_path: Path,
) -> None:
    found = tmp_path / "result.json"
    command = [sys.executable, "-m", "examples.training", "--steps", str(STEPS), "--json", str(found)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    result = msgspec.json.decode(found.read_bytes(), type=Result)
    assert result.problems == ()
    assert [step.version for step in result.steps] == ["step-1", "step-2", "step-3"]
    losses = [result.loss[0], *(step.loss for step in result.steps)]
    assert losses == sorted(losses, reverse=True)
    weights = 2 * (256 * 256 + 256)
    first, *others = result.steps
    assert (first.nbytes, first.changed) == (weights * 2, 1.0), "the first step brings all weights once"
    for step in others:
        assert step.all_nbytes == weights * 2
        assert step.nbytes < 0.25 * step.all_nbytes
        assert 0 < step.changed < 0.15
    for step in result.steps:
        assert f"{step.version:8} loss {step.loss:.2e}, pause " in ran.stdout
        assert "% changed, sent █" in ran.stdout
    assert f"loss    {curve(losses, 0.0)}  from" in ran.stdout
    assert (curve([4.0, 3.0, 2.0, 0.5]), curve([2.0, 1.0], 0.0), curve([1.0]), curve([])) == ("█▆▄▁", "█▅", "▁", "")


def test_given_what_is_served_when_it_is_not_what_was_trained_then_that_is_a_problem() -> None:
    step = Step(version="step-1", loss=0.5, seconds=1.0, paused=0.1, nbytes=8, all_nbytes=8, changed=1.0)
    assert list(problems(1, (step,), (1.0, 0.5), {"": 3, "step-1": 4})) == []
    assert list(problems(2, (step,), (1.0, 0.5), {"": 3})) == ["the trainer brought 1 steps, and was to bring 2"]
    found = list(problems(1, (step,), (0.5, 0.75), {"step-7": 1}))
    assert found == [
        "the loss of what is served went from 5.00e-01 to 7.50e-01",
        "the trainer's loss is 5.00e-01, and that of what is served is 7.50e-01",
        "nothing was answered before the first step",
        "answers were of unknown versions: step-7",
    ]
