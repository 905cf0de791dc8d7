"""Says what came of checks, of a transport or of an engine."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from ckpt_transport.sizes import count


class Promise(Protocol):
    """A promise is what a check finds out about.

    Attributes:
        name: of the check, short, for reports and for choosing.
        promise: what is promised, in a sentence.
        where: where in the documentation the promise stands.
    """

    @property
    def name(self) -> str: ...
    @property
    def promise(self) -> str: ...
    @property
    def where(self) -> str: ...


class ConformanceError(AssertionError):
    """A promise of an interface is not kept.

    Args:
        check: found it.
        subject: does not keep it, as ``transport 'shm'``.
        happened: instead.

    Attributes:
        check: the name of the check that found it.
    """

    def __init__(self, check: Promise, subject: str, happened: str) -> None:
        self.check = check.name
        indented = happened.replace("\n", "\n          ")
        super().__init__(
            f"{subject} fails the check '{check.name}'\n"
            f"promised: {check.promise}\n"
            f"happened: {indented}\n"
            f"see:      {check.where}"
        )


class Verdict(enum.StrEnum):
    """Says what came of one check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A result is one line of a report, and prints as one."""

    check: Promise
    verdict: Verdict
    seconds: float = 0.0
    explanation: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:8} {self.seconds:6.1f} s  {self.check.name}"


@dataclass(frozen=True, slots=True)
class ConformanceReport:
    """Says what came of all checks of one subject. It prints as a table, with explanations and a
    summary after it.

    Attributes:
        subject: what was checked, as ``transport 'shm'``.
    """

    subject: str
    results: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that did."""
        return tuple(result.check.name for result in self.results if result.verdict is Verdict.FAILED)

    @property
    def summary(self) -> str:
        """How many checks passed, failed and were skipped, in a line."""
        counts = Counter(result.verdict for result in self.results)
        return f"{count(counts[Verdict.PASSED], 'check')} passed, " + ", ".join(
            f"{counts[verdict]} {verdict}" for verdict in (Verdict.FAILED, Verdict.SKIPPED)
        )

    def __str__(self) -> str:
        reasons = ["\n" + result.explanation for result in self.results if result.explanation]
        return "\n".join([self.subject, *map(str, self.results), *reasons, f"\n{self.summary}"])
