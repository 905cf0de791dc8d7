"""Does a transport say whether it can run here, even if its probe raises, hangs or ends the process?"""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch

from ckpt_transport.reasons import named_reason
from ckpt_transport.testing.check import Factory, check, explain, in_words, name_of
from ckpt_transport.testing.context import HangError, RankContext
from ckpt_transport.testing.harness import Broken, Rank
from ckpt_transport.testing.processes import Launcher
from ckpt_transport.testing.report import ConformanceError
from ckpt_transport.transports.interface import Availability, Transport

CYCLES = 8
"""How often something is done that must leave nothing behind."""


def probe(transport: type[Transport]) -> Availability:
    """Ask its probe.

    Raises:
        Broken: it raises, or says something that is not an answer.
    """
    try:
        answer: object = transport.probe()
    except Exception as error:
        raise Broken(f"probe() raised {named_reason(error)}") from error
    if not isinstance(answer, Availability):
        raise Broken(f"probe() returned {answer!r}, and an Availability is promised")
    return answer


@check(
    "probe() says whether the transport can run; it touches no device and starts nothing.", "Transport.probe", ranks=1
)
def check_probe_is_cheap(rank: Rank) -> None:
    before = holds()
    answers = [probe(type(rank.transport)) for _ in range(CYCLES)]
    for answer in answers:
        if not answer.ok:
            raise Broken(f"the transport cannot be checked here: {answer.reason}; {answer.hint}")
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise Broken("probe() has initialised CUDA")
    grown = {what: (count, holds()[what]) for what, count in before.items() if holds()[what] >= count + CYCLES}
    if grown:
        raise Broken(f"after {CYCLES} calls of probe() the process holds more: {grown}")


def ask(factory: Factory, deadline: float, launcher: Launcher) -> Availability:
    """Ask the probe of the transport, in a process of its own, or a thread where ``launcher`` has those.

    Raises:
        ConformanceError: it does not answer within ``deadline`` seconds, raises, or says something else.
    """
    try:
        (outcome,) = launcher(_ask, 1, factory, deadline=deadline)
    except HangError as error:
        raise ConformanceError(
            check_probe_is_cheap, in_words(name_of(factory)), f"probe() does not return: {error}"
        ) from error
    if not outcome.ok:
        raise ConformanceError(check_probe_is_cheap, in_words(name_of(factory)), explain(outcome))
    answer: Availability = outcome.value
    return answer


def _ask(context: RankContext, factory: Factory) -> Availability:
    return probe(factory if isinstance(factory, type) else type(factory()))


def holds() -> dict[str, int]:
    """How many of what must not leak this process holds."""
    gc.collect()
    return {
        "file descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "segments": len(list(Path("/dev/shm").glob(f"ckpt-transport-{os.getuid()}-{os.getpid()}-*"))),
    }
