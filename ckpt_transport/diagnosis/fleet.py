"""Members of a fleet are asked what they serve and with which release, and compared."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import NamedTuple

from ckpt_transport.config import Config
from ckpt_transport.diagnosis.finding import Finding, Severity
from ckpt_transport.errors import CkptTransportError, JoinError
from ckpt_transport.release import RELEASE
from ckpt_transport.service import ask_version
from ckpt_transport.service.fleet import make_fleet
from ckpt_transport.service.questions import ServedVersion

AT_ONCE = 32
"""Sinks that are asked at the same time."""
APART_SECONDS = 1.0
"""Clocks that are further apart put what happened on several hosts in a wrong order."""


class Answered(NamedTuple):
    """What a sink answered, and by how many seconds its clock is certainly ahead of this one; negative if behind."""

    served: ServedVersion
    ahead: float


def look_at_sinks(addresses: Sequence[str], config: Config, timeout: float = 5.0) -> Iterator[Finding]:
    """Ask the sinks at ``addresses``, each for ``timeout`` seconds at most, and compare their answers."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = dict(zip(addresses, pool.map(partial(_ask, config=config, timeout=timeout), addresses), strict=True))
    answered = {address: answer for address, answer in answers.items() if isinstance(answer, Answered)}
    for address, answer in answers.items():
        yield _judged(address, answer.served) if isinstance(answer, Answered) else answer
    if answered:
        yield same_version({address: answer.served.version for address, answer in answered.items()})
        yield same_release({address: answer.served.release for address, answer in answered.items()})
        yield same_time({address: answer.ahead for address, answer in answered.items()})


def look_at_engines(engine: str, endpoints: Sequence[str], config: Config) -> Iterator[Finding]:
    """Ask engines of one kind at their endpoints which version they serve, and compare."""
    versions: dict[str, str] = {}
    for endpoint in endpoints:
        try:
            with closing(make_fleet(engine, [endpoint], config, "keep", False)) as fleet:
                (versions[endpoint],) = fleet.versions()
        except CkptTransportError as error:
            yield Finding(endpoint, Severity.PROBLEM, str(error), f"is {engine} running there, and updatable?")
            continue
        yield Finding(endpoint, Severity.OK, f"serves {versions[endpoint] or 'a version without a name'}")
    if versions:
        yield same_version(versions)


def same_version(versions: Mapping[str, str]) -> Finding:
    """Judge whether members, by address, serve one version."""
    return _same("versions", versions, "bring the version that all shall serve to all of them")


def same_release(releases: Mapping[str, str]) -> Finding:
    """Judge whether members, by address, run one release of this library, which is also that of this process."""
    cure = "install one release of ckpt-transport everywhere: others may not understand its messages"
    return _same("releases", {"this process": RELEASE, **releases}, cure)


def same_time(ahead: Mapping[str, float]) -> Finding:
    """Judge whether the clocks of members, by address, are as many seconds ahead of this one as does no harm."""
    apart = {address: seconds for address, seconds in ahead.items() if abs(seconds) > APART_SECONDS}
    if not apart:
        return Finding("clocks", Severity.OK, f"those of {len(ahead)} are within a second of this one")
    said = ", ".join(
        f"{address} is {abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} this host"
        for address, seconds in apart.items()
    )
    cure = "set these clocks right: histories, traces and metrics compare clocks of hosts"
    return Finding("clocks", Severity.WARNING, said, cure)


def _same(topic: str, found: Mapping[str, str], cure: str) -> Finding:
    if len(set(found.values())) == 1:
        return Finding(topic, Severity.OK, f"all {len(found)} have {_named(next(iter(found.values())))}")
    by_value: dict[str, list[str]] = defaultdict(list)
    for who, value in found.items():
        by_value[value].append(who)
    return Finding(
        topic, Severity.WARNING, "; ".join(_who(value, members) for value, members in by_value.items()), cure
    )


def _who(value: str, members: Iterable[str]) -> str:
    return f"{_named(value)}: {', '.join(members)}"


def _named(value: str) -> str:
    return value or "no name"


def _ask(address: str, config: Config, timeout: float) -> Answered | Finding:
    before = time.time()
    try:
        served = ask_version(address, config, timeout)
    except JoinError as error:
        return Finding(
            address, Severity.PROBLEM, str(error), "over TCP, secret_file must also be the same here and there"
        )
    except CkptTransportError as error:
        return Finding(address, Severity.PROBLEM, str(error))
    nearest = min(max(served.clock, before), time.time())
    return Answered(served, served.clock - nearest if served.clock else 0.0)


def _judged(address: str, answer: ServedVersion) -> Finding:
    if answer.tainted:
        return Finding(address, Severity.PROBLEM, f"must not serve: {answer.tainted}", "bring a version to it")
    if answer.in_doubt:
        cure = "ckpt-transport resolve, or bring a version to it"
        return Finding(address, Severity.PROBLEM, f"is in doubt: {answer.in_doubt}", cure)
    if answer.stuck:
        return Finding(address, Severity.PROBLEM, f"takes no update: {answer.stuck}", "restart it if that does not end")
    said = f"{answer.label} serves {answer.version or 'a version without a name'}"
    return Finding(address, Severity.OK, f"{said}, and is being updated to {answer.update}" if answer.update else said)
