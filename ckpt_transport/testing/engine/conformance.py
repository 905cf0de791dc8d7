"""All checks of engines, and how they are run one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from ckpt_transport.testing.engine.check import EngineCheck, name_of
from ckpt_transport.testing.engine.checks import driving, failures, leaks, serving
from ckpt_transport.testing.engine.trial import MakeEngine, NotApplicableError, Patience
from ckpt_transport.testing.report import CheckResult, ConformanceError, ConformanceReport, Verdict

CHECKS = tuple(
    check
    for subject in (serving, failures, driving, leaks)
    for check in vars(subject).values()
    if isinstance(check, EngineCheck)
)
"""All checks, the plainest first."""


def run(
    make: MakeEngine,
    *,
    only: Collection[str] | None = None,
    progress: Callable[[CheckResult], None] | None = None,
    patience: Patience | None = None,
    **settings: Any,
) -> ConformanceReport:
    """Run the checks one after the other, each with an engine of its own.

    Args:
        make: makes an engine under test, as its class does.
        only: names of checks; all by default.
        progress: called with each result as it comes.
        patience: how long to wait for what must, and must not, happen.
        settings: of :class:`~ckpt_transport.Config`.

    Raises:
        ValueError: ``only`` names a check that there is not.
    """
    known = {check.name for check in CHECKS}
    if unknown := set(only or ()) - known:
        raise ValueError(f"there are no checks {sorted(unknown)}; there are {sorted(known)}")
    results: list[CheckResult] = []
    for check in CHECKS:
        if only is None or check.name in only:
            results.append(_result(check, make, patience, settings))
            if progress is not None:
                progress(results[-1])
    return ConformanceReport(name_of(make), tuple(results))


def _result(check: EngineCheck, make: MakeEngine, patience: Patience | None, settings: dict[str, Any]) -> CheckResult:
    began = time.monotonic()
    verdict, explanation = Verdict.PASSED, ""
    try:
        check(make, patience=patience, **settings)
    except NotApplicableError as reason:
        verdict, explanation = Verdict.SKIPPED, f"{check.name}: {reason}"
    except ConformanceError as error:
        verdict, explanation = Verdict.FAILED, str(error)
    return CheckResult(check, verdict, time.monotonic() - began, explanation)
