"""Does a transport keep every promise of the interface?

The whole of a plugin's test file::

    import pytest
    from ckpt_transport.testing import CHECKS, Check
    from my_plugin import MyTransport

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
    def test_conformance(check: Check) -> None:
        check(MyTransport)

Without pytest: ``run(MyTransport)``, or ``python -m ckpt_transport.testing my_plugin:MyTransport``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from ckpt_transport.errors import TransportUnavailableError
from ckpt_transport.testing.check import LONG_DEADLINE, Check, Factory, in_words, name_of
from ckpt_transport.testing.checks import (
    delivery,
    endurance,
    failures,
    flow,
    lifetimes,
    opening,
    ordering,
    probing,
    scale,
)
from ckpt_transport.testing.checks.opening import check_route_opens
from ckpt_transport.testing.checks.probing import ask, check_probe_is_cheap
from ckpt_transport.testing.processes import Launcher, launch
from ckpt_transport.testing.report import CheckResult, ConformanceError, ConformanceReport, Verdict
from ckpt_transport.testing.threads import launch_in_threads

_ALL = [
    check
    for subject in (probing, opening, delivery, flow, failures, ordering, lifetimes, scale, endurance)
    for check in vars(subject).values()
    if isinstance(check, Check)
]

CHECKS = tuple(check for check in _ALL if check.deadline < LONG_DEADLINE)
"""All checks, the plainest first."""

LONG_CHECKS = tuple(check for check in _ALL if check.deadline >= LONG_DEADLINE)
"""What takes minutes or gigabytes: for when a transport or its library changes, not for every run of a test suite."""


def run(
    factory: Factory,
    *,
    only: Collection[str] | None = None,
    progress: Callable[[CheckResult], None] | None = None,
    deadline: float | None = None,
    launcher: Launcher = launch,
    checks: Sequence[Check] = CHECKS,
) -> ConformanceReport:
    """Run the checks one after the other.

    Args:
        factory: makes the transport; must be importable, since other processes call it too.
        only: names of checks; all by default.
        progress: called with each result as it comes.
        deadline: seconds each check may take; by default what the check itself says. ``route_opens`` gets no fewer.
        launcher: how ranks are run. With ``launch_in_threads``, checks that kill a process are skipped.
        checks: which there are; add :data:`LONG_CHECKS` for those that take minutes.

    Returns:
        What came of each check. Whatever ``only`` says, a probe that raises, hangs or gives no answer has failed
        ``probe_is_cheap``, and the others are run all the same; a transport that cannot be opened has failed
        ``route_opens``, and no other is run.

    Raises:
        TransportUnavailableError: the transport's own probe says that it cannot run here.
        ValueError: ``only`` names a check that there is not.
    """
    names = {check.name for check in checks}
    if unknown := set(only or ()) - names:
        raise ValueError(f"there are no checks {sorted(unknown)}; there are {sorted(names)}")
    name = name_of(factory)
    results: list[CheckResult] = []

    def report(result: CheckResult) -> None:
        results.append(result)
        if progress is not None:
            progress(result)

    began = time.monotonic()
    try:
        available = ask(factory, check_probe_is_cheap.deadline if deadline is None else deadline, launcher)
    except ConformanceError as error:
        report(CheckResult(check_probe_is_cheap, Verdict.FAILED, time.monotonic() - began, str(error)))
    else:
        if not available.ok:
            raise TransportUnavailableError(name, available.reason, available.hint)
    enough = None if deadline is None else max(deadline, check_route_opens.deadline)
    opens = _result(check_route_opens, factory, enough, launcher)
    if opens.verdict is Verdict.FAILED:
        report(opens)
        return ConformanceReport(in_words(name), tuple(results))
    reported = {result.check.name for result in results}
    for check in checks:
        if check.name not in reported and (only is None or check.name in only):
            report(opens if check == check_route_opens else _result(check, factory, deadline, launcher))
    return ConformanceReport(in_words(name), tuple(results))


def _result(check: Check, factory: Factory, deadline: float | None, launcher: Launcher) -> CheckResult:
    if check.killed and launcher is launch_in_threads:
        return CheckResult(
            check, Verdict.SKIPPED, explanation=f"{check.name} kills a process, and the ranks are not processes"
        )
    began = time.monotonic()
    try:
        check(factory, deadline=deadline, launcher=launcher)
    except ConformanceError as error:
        return CheckResult(check, Verdict.FAILED, time.monotonic() - began, str(error))
    return CheckResult(check, Verdict.PASSED, time.monotonic() - began)
