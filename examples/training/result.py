"""What the demonstration of training found, and whether it is what was promised."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from examples.training.trainer import Step


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the demonstration found.

    Attributes:
        problems: what was not as promised.
        verdict: what is to be said when everything was.
        steps: of the trainer.
        loss: of the model that is served, at first and in the end.
        answers: forward passes, by the version that was served when they began.
    """

    problems: tuple[str, ...]
    verdict: str
    steps: tuple[Step, ...]
    loss: tuple[float, float]
    answers: dict[str, int]


def problems(count: int, steps: tuple[Step, ...], loss: tuple[float, float], answers: dict[str, int]) -> Iterator[str]:
    """What did not hold."""
    versions = [f"step-{number}" for number in range(1, count + 1)]
    if [step.version for step in steps] != versions:
        yield f"the trainer brought {len(steps)} steps, and was to bring {count}"
        return
    before, after = loss
    if not after < before:
        yield f"the loss of what is served went from {before:.2e} to {after:.2e}"
    if abs(after - steps[-1].loss) > 1e-5 * before:
        yield f"the trainer's loss is {steps[-1].loss:.2e}, and that of what is served is {after:.2e}"
    if not answers.get("", 0):
        yield "nothing was answered before the first step"
    if unknown := answers.keys() - {"", *versions}:
        yield f"answers were of unknown versions: {', '.join(sorted(unknown))}"
