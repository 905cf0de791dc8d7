"""This module asks a transport whether it can run here, prepared for a probe that raises, hangs or ends the process."""

from __future__ import annotations

from ckpt_transport.testing.check import ConformanceError, Factory, explain, name_of
from ckpt_transport.testing.checks.lifetimes import check_probe_is_cheap, probe
from ckpt_transport.testing.context import HangError, RankContext
from ckpt_transport.testing.processes import Launcher
from ckpt_transport.transports.interface import Availability


def ask(factory: Factory, deadline: float, launcher: Launcher) -> Availability:
    """Ask the probe of the transport, in a process of its own, or a thread where ``launcher`` has those.

    Raises:
        ConformanceError: it does not answer within ``deadline`` seconds, raises, or says something else.
    """
    try:
        (outcome,) = launcher(_ask, 1, factory, deadline=deadline)
    except HangError as error:
        raise ConformanceError(check_probe_is_cheap, name_of(factory), f"probe() does not return: {error}") from error
    if not outcome.ok:
        raise ConformanceError(check_probe_is_cheap, name_of(factory), explain(outcome))
    answer: Availability = outcome.value
    return answer


def _ask(context: RankContext, factory: Factory) -> Availability:
    return probe(factory if isinstance(factory, type) else type(factory()))
