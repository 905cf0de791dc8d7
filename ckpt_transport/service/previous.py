"""The version that sinks can all go back to."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_transport.config import Config
from ckpt_transport.errors import JoinError, UpdateAbortedError
from ckpt_transport.service.query import ask_versions
from ckpt_transport.service.questions import ServedVersion


def previous_version(sinks: Sequence[str], config: Config) -> str:
    """The name of the version that each of these sinks served before, and has kept.

    Raises:
        UpdateAbortedError: they have kept none, or not the same; says who has what.
        JoinError: a sink does not answer within ``join_timeout``.
    """
    answers: list[ServedVersion] = []
    for answer in ask_versions(sinks, config, config.join_timeout).values():
        if isinstance(answer, JoinError):
            raise answer
        answers.append(answer)
    kept = {answer.previous for answer in answers}
    if len(kept) == 1 and "" not in kept:
        return kept.pop()
    told = "; ".join(
        f"{answer.label} at {address} serves '{answer.version}' and has kept "
        + (f"'{answer.previous}'" if answer.previous else "none")
        for address, answer in zip(sinks, answers, strict=True)
    )
    raise UpdateAbortedError(
        f"these sinks cannot go back together: {told}; a sink keeps the version before when the one that it serves was "
        "staged, until the next one comes"
    )
