"""A report says what an update did, for people and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ckpt_transport.errors import ConfigError
from ckpt_transport.execution import StageEvent, draw, write_trace
from ckpt_transport.paths import without_nul
from ckpt_transport.planning import Pauses, Plan, modules_in_words, slowest
from ckpt_transport.sizes import count


@dataclass(frozen=True, slots=True)
class DeltaSummary:
    """Says whether an update has sent what has changed, or why it has sent everything.

    Attributes:
        base: the version that what was sent is the difference to; empty where everything was.
        reason: why everything was sent; empty where it was not.
        version_nbytes: bytes of the version.
        sent_nbytes: bytes that were sent of it.
        elements: how many elements were compared.
        changed: how many were sent.
        found: seconds in which they were found.
        whole: why all tensors of a module of a sink came, whatever had changed, by the module's name.
    """

    base: str = ""
    reason: str = ""
    version_nbytes: int = 0
    sent_nbytes: int = 0
    elements: int = 0
    changed: int = 0
    found: float = 0.0
    whole: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.base:
            return f"everything was sent: {self.reason}"
        sent = (
            f"the difference to '{self.base}' was sent: {self.changed / max(self.elements, 1):.2%} of the elements in "
            f"{self.sent_nbytes / max(self.version_nbytes, 1):.2%} of the bytes, found in {self.found:.3f} s"
        )
        return "; ".join(filter(None, [sent, modules_in_words(self.whole)]))

    def to_dict(self) -> dict[str, Any]:
        """As numbers and strings."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Report:
    """Describes a committed update. It prints as a few lines for people.

    Attributes:
        version: what every sink serves now.
        plan: what was run.
        phases: seconds that each phase took, in order, from the caller's call to its return.
        paused: for each sink, by rank, the seconds in which no forward pass ran: from the end of the last one before.
        timeline: every stage on every rank.
        labels: what people call each rank.
        lost: labels of sinks that died when all had been told to commit.
        left: who left an update by P2P before its end, or a holder that did not come: address and why.
        apply_summary: how sinks have applied the version, by rank, in words; of those that say so.
        staged: the version was staged beside what was served, and exchanged with it.
        in_place: why it was not, where it was to be if possible.
        pauses: for how long forward passes were expected to stand still, either way; None where nothing was planned.
        intake: whether rank 0 has lent or registered what it has published, and why; empty after other calls.
        delta: whether what has changed was sent, or why everything was; None where nobody asks for deltas.
    """

    version: str
    plan: Plan = field(repr=False)
    phases: dict[str, float]
    paused: dict[int, float]
    timeline: Sequence[StageEvent] = field(repr=False)
    labels: dict[int, str]
    lost: tuple[str, ...] = ()
    left: dict[str, str] = field(default_factory=dict)
    apply_summary: dict[int, str] = field(default_factory=dict)
    staged: bool = False
    in_place: str = ""
    pauses: Pauses | None = None
    intake: str = ""
    delta: DeltaSummary | None = None

    @property
    def seconds(self) -> float:
        """How long the whole call took: the sum of its phases."""
        return sum(self.phases.values())

    @property
    def predicted(self) -> float:
        """How many seconds the phase ``run`` was expected to take when the plan was made."""
        return self.plan.prediction.seconds

    @property
    def mappings(self) -> tuple[str, ...]:
        """The rules by which the trainer's names, types and shapes became the engines', in words.

        There is one mapping for each that source ranks have applied, as those that ``mapping="auto"`` has found; none
        where there was none.
        """
        return self.plan.manifest.mappings

    @property
    def transports(self) -> tuple[str, ...]:
        """Those that the plan has used, by name."""
        return tuple(dict.fromkeys(route.transport for route in self.plan.routes))

    @property
    def slowest_link(self) -> str:
        """The link that the plan was expected to wait for, in words, with what crosses it."""
        return slowest(self.plan.prediction)

    def __str__(self) -> str:
        lines = [
            f"{self.version} is served by {count(len(self.paused), 'sink')} after {self.seconds:.3f} s "
            f"({steps_in_words(self.phases)})"
        ]
        lines += [f"{self.labels[rank]}: {told}" for rank, told in sorted(self.apply_summary.items())]
        if self.delta is not None:
            lines.append(str(self.delta))
        if self.in_place:
            lines.append(f"it was written in place: {self.in_place}")
        if self.paused:
            how = "to exchange what is served" if self.staged else "to write it in place"
            lines.append(f"forward passes were held for at most {max(self.paused.values()) * 1e3:.0f} ms, {how}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """What programs want to know of it, as numbers, strings, lists and dictionaries that JSON can hold.

        Seconds are floats; ``bytes``, which is what was moved, is an integer. Keys may be added in later releases;
        none is renamed or removed.
        """
        manifest = self.plan.manifest
        return {
            "version": self.version,
            "seconds": self.seconds,
            "phases": dict(self.phases),
            "predicted_run_seconds": self.predicted,
            "slowest_link": self.slowest_link,
            "transports": list(self.transports),
            "tensors": sum(len(delta.tensors) for delta in manifest.deltas) or len(manifest.specs),
            "bytes": manifest.nbytes,
            "buckets": len(self.plan.buckets),
            "staged": self.staged,
            "in_place": self.in_place,
            "predicted_held_seconds": None if self.pauses is None else self.pauses.to_dict(),
            "intake": self.intake,
            "mappings": list(self.mappings),
            "delta": None if self.delta is None else self.delta.to_dict(),
            "sinks": [
                {
                    "rank": rank,
                    "label": self.labels[rank],
                    "held_seconds": held,
                    "applied": self.apply_summary.get(rank, ""),
                }
                for rank, held in sorted(self.paused.items())
            ],
            "lost": list(self.lost),
            "left": dict(self.left),
        }

    def picture(self, width: int = 72) -> str:
        """The timeline as lines of text."""
        return draw(self.timeline, self.labels, width)

    def write_trace(self, path: Path) -> None:
        """The timeline as a file for Perfetto.

        Raises:
            ConfigError: no file can be called so.
            OSError: it cannot be written.
        """
        write_trace(without_nul(path, ConfigError), self.timeline, self.labels)


def steps_in_words(steps: Mapping[str, float]) -> str:
    """How long each step took: ``health 9 ms, attach 41 ms``."""
    return ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in steps.items())
