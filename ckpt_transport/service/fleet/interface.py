"""A fleet is a set of running engines that are driven from outside, each through a control interface of its own.

An adapter registers a :data:`MakeFleet` under the entry point group ``ckpt_transport.engines``; the commands find it
there by the name of the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeVar

from ckpt_transport.checkpoint import Loan, TensorPairs, Tensors
from ckpt_transport.config import Config
from ckpt_transport.errors import ConfigError
from ckpt_transport.service.auto import AnyMapping
from ckpt_transport.service.staged_job import StagedJob
from ckpt_transport.update.progress import Progress
from ckpt_transport.update.report import Report, steps_in_words

Result = TypeVar("Result")
GROUP = "ckpt_transport.engines"


@dataclass(frozen=True, slots=True)
class FleetReport:
    """Describes a committed update of a fleet. It prints as a few lines for people.

    Attributes:
        update: of the sinks.
        steps: seconds that each step took, in order.
        held: seconds for which each engine held requests, by endpoint; 0 where it was not paused.
        problems: what went wrong after all had the new version, as an engine that could not be resumed.
    """

    update: Report
    steps: dict[str, float]
    held: dict[str, float]
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        held = [
            f"{endpoint}: requests were {f'held for {seconds * 1e3:.0f} ms' if seconds else 'not held'}"
            for endpoint, seconds in self.held.items()
        ]
        problems = [f"problem: {problem}" for problem in self.problems]
        return "\n".join([str(self.update), f"steps: {steps_in_words(self.steps)}", *held, *problems])

    def to_dict(self) -> dict[str, Any]:
        """What programs want to know of it, as :meth:`~ckpt_transport.Report.to_dict` says, and of the engines."""
        engines = [{"endpoint": endpoint, "held_seconds": held} for endpoint, held in self.held.items()]
        return {**self.update.to_dict(), "steps": dict(self.steps), "engines": engines}


class Updates(Protocol):
    """Brings versions to sinks: a :class:`~ckpt_transport.ParameterServer` or a :class:`~ckpt_transport.Joiner`.

    Attributes:
        rank: of this one among those that make the same calls; rank 0 leads.
    """

    @property
    def rank(self) -> int: ...

    def update(
        self,
        version: str,
        sinks: Sequence[str] | None = None,
        progress: Progress | None = None,
        before_hold: Callable[[], None] | None = None,
    ) -> Report | None: ...


class Publishes(Protocol):
    """Brings a step's weights to sinks, and lets them go: a :class:`~ckpt_transport.ParameterServer`.

    Attributes:
        rank: of this one among those that make the same calls; rank 0 leads.
    """

    @property
    def rank(self) -> int: ...

    def publish(
        self,
        version: str,
        tensors: Tensors | TensorPairs | Loan,
        sinks: Sequence[str] | None = None,
        progress: Progress | None = None,
        before_hold: Callable[[], None] | None = None,
        *,
        replicated: bool = False,
        mapping: AnyMapping = None,
        base: str = "",
    ) -> Report | None: ...


class StagesVersions(Protocol):
    """Brings versions beside what sinks serve: a :class:`~ckpt_transport.ParameterServer`.

    Attributes:
        rank: of this one among those that make the same calls; rank 0 leads.
    """

    @property
    def rank(self) -> int: ...

    def stage(
        self,
        version: str,
        sinks: Sequence[str] | None = None,
        progress: Progress | None = None,
        *,
        supersede: bool = False,
    ) -> StagedJob[Report]: ...

    async def awaiting(self, call: Callable[[], Result], /) -> Result: ...


class RollsBack(Protocol):
    """Brings sinks back to the version before: a :class:`~ckpt_transport.ParameterServer`."""

    def rollback(self, sinks: Sequence[str] | None = None, before_hold: Callable[[], None] | None = None) -> Report: ...


class Fleet(Protocol):
    """Updates some engines, once or many times."""

    def update(self, server: Updates, version: str, progress: Progress | None = None) -> FleetReport | None:
        """Bring ``version`` of ``server`` to every engine. All ranks of ``server`` call it.

        Returns: what happened, on rank 0; None on the others, which take part in the update and ask no engine.

        Raises:
            EngineError: an engine's control interface is not there, or refused, or another program has driven the
                engine for all of ``join_timeout``; nothing has changed.
            UpdateAbortedError, TaintedError: as :meth:`ParameterServer.update`. Engines on the old version go on
                serving; tainted ones are left paused. Notes on the error say which.
        """
        ...

    def rollback(self, server: RollsBack) -> FleetReport:
        """Have every engine serve the version before again, which its sinks have kept since it was staged.

        Raises: as :meth:`update`, and as :meth:`ParameterServer.rollback`.
        """
        ...

    def warm_up(self) -> dict[str, str]:
        """Have every engine do, while it serves, what its first update would do, and wait for that.

        Returns: for each sink, by its address, what it has done, or why it could not, in words.

        Raises:
            EngineError: an engine does not answer, or does not know what versions look like.
        """
        ...

    def sinks(self) -> tuple[str, ...]:
        """Find the sinks of all engines: their addresses, the engines in order.

        Raises:
            EngineError: an engine does not answer within ``endpoint_timeout``, or cannot be updated.
        """
        ...

    def versions(self) -> tuple[str, ...]:
        """What each engine says it serves; empty when it has no name for it.

        Raises:
            EngineError: one does not answer.
        """
        ...

    def close(self) -> None: ...


MakeFleet = Callable[[Sequence[str], Config, str, bool], Fleet]
"""Makes a fleet from endpoints, settings, how to pause, and whether the draft models are meant."""


def make_fleet(engine: str, endpoints: Sequence[str], config: Config, pause: str, draft: bool) -> Fleet:
    """Make the fleet of engines of one kind.

    Raises:
        ConfigError: no adapter has that name, or two have.
    """
    found = [point for point in entry_points(group=GROUP) if point.name == engine]
    if not found:
        names = ", ".join(sorted({point.name for point in entry_points(group=GROUP)})) or "none"
        raise ConfigError(f"no adapter drives engines called '{engine}'; there are: {names}")
    if len({point.value for point in found}) > 1:
        who = " and ".join(f"{point.value} of {point.dist.name if point.dist else '?'}" for point in found)
        raise ConfigError(f"two adapters drive engines called '{engine}': {who}; uninstall one")
    make: MakeFleet = found[0].load()
    return make(endpoints, config, pause, draft)
