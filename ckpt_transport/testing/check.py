"""A check is one promise of the transport interface, and finds out whether a transport keeps it."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_transport.memory import sweep_leftovers
from ckpt_transport.testing.context import HangError, RankContext, RankOutcome
from ckpt_transport.testing.harness import Abandoned, Broken, Rank
from ckpt_transport.testing.processes import Launcher, launch
from ckpt_transport.testing.report import ConformanceError
from ckpt_transport.transports.interface import Transport

Factory = Callable[[], Transport]
"""A transport class, or a function that makes one; importable by its name, since other processes call it too."""

DEADLINE = 30.0
"""Seconds that a check may take."""
LONG_DEADLINE = 600.0
"""Seconds that a long one may take."""
SILENCE = 2.0
"""Seconds without a heartbeat after which a killed rank is lost, in the checks that kill one."""


@dataclass(frozen=True)
class Check:
    """Checks one promise: call it with a factory; it returns when the promise is kept.

    Attributes:
        name: short, for reports and for choosing.
        promise: what is promised, in a sentence.
        where: where in the documentation the promise stands.
        body: what every rank does.
        ranks: how many there are.
        killed: the ranks that end themselves by SIGKILL; such a check needs real processes.
        deadline: seconds it may take, unless its caller says otherwise.
    """

    name: str
    promise: str
    where: str
    body: Callable[[Rank], None]
    ranks: int = 3
    killed: frozenset[int] = frozenset()
    deadline: float = DEADLINE

    def __call__(self, factory: Factory, *, deadline: float | None = None, launcher: Launcher = launch) -> None:
        """Check one transport.

        Args:
            factory: makes the transport; must be importable.
            deadline: seconds the check may take, its own by default. It bounds what hangs, and decides nothing else.
            launcher: how ranks are run; pass ``launch_in_threads`` for a transport that lives in one process.

        Raises:
            ConformanceError: the promise is not kept.
        """
        subject = in_words(name_of(factory))
        deadline = self.deadline if deadline is None else deadline
        try:
            outcomes = launcher(_run, self.ranks, self, factory, deadline, deadline=deadline, silence=SILENCE)
        except HangError as error:
            raise ConformanceError(self, subject, str(error)) from error
        finally:
            if self.killed:
                sweep_leftovers()
        as_planned = [one.died is signal.SIGKILL if one.rank in self.killed else one.ok for one in outcomes]
        wrong = [outcome for outcome, well in zip(outcomes, as_planned, strict=True) if not well]
        if wrong:
            wrong.sort(key=_rank_of_blame)
            raise ConformanceError(self, subject, _explain_all(wrong))

    def __reduce__(self) -> tuple[Callable[[str, str], object], tuple[str, str]]:
        return _find, (self.body.__module__, f"check_{self.name}")


def check(promise: str, where: str, **conditions: Any) -> Callable[[Callable[[Rank], None]], Check]:
    """Make a :class:`Check` of the function ``check_NAME(rank)``, which every rank calls."""
    return lambda body: Check(body.__name__.removeprefix("check_"), promise, where, body, **conditions)


def name_of(factory: Factory) -> str:
    """Find the name of the transport that ``factory`` makes, or its own where that has none.

    A class is not asked to make one.
    """
    made_by: object = factory
    try:
        return made_by.name if isinstance(made_by, type) and issubclass(made_by, Transport) else factory().name
    except Exception:
        return str(getattr(made_by, "__name__", made_by))


def in_words(name: str) -> str:
    """What the transport of that name is called in messages."""
    return f"transport '{name}'"


def _find(module: str, name: str) -> object:
    return getattr(importlib.import_module(module), name)


def _run(context: RankContext, check: Check, factory: Factory, deadline: float) -> None:
    with Rank(context, factory, deadline, keeps_peers=not check.killed) as rank:
        check.body(rank)


def _rank_of_blame(outcome: RankOutcome) -> int:
    """First those that saw a promise broken, last those that only noticed that another rank had stopped."""
    if outcome.failure is None:
        return 1
    return {Broken.__name__: 0, Abandoned.__name__: 3}.get(outcome.failure.kind, 2)


def _explain_all(outcomes: Sequence[RankOutcome]) -> str:
    """Tell what became of ranks; once, where all saw the same promise broken."""
    seen = {outcome.failure and (outcome.failure.kind, outcome.failure.message) for outcome in outcomes}
    match tuple(seen):
        case ((Broken.__name__, message),) if len(outcomes) > 1:
            return f"ranks {', '.join(str(outcome.rank) for outcome in outcomes)}: {message}"
        case _:
            return "\n".join(map(explain, outcomes))


def explain(outcome: RankOutcome) -> str:
    """Tell what became of a rank that was to do something else."""
    if outcome.failure is None:
        return f"{outcome}, which was not to happen"
    if outcome.failure.kind in (Broken.__name__, Abandoned.__name__):
        return f"rank {outcome.rank}: {outcome.failure.message}"
    return f"{outcome}\n{outcome.failure.traceback.rstrip()}"
