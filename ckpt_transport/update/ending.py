"""Whoever watches is told that an update has begun that this process leads, and how it has ended."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ckpt_transport.errors import CkptTransportError, SupersededError, TaintedError
from ckpt_transport.events import BytesReceived, UpdateBegan, UpdateEnded, tell, trace_of
from ckpt_transport.history import keep
from ckpt_transport.update.report import Report


def tell_began(update: str, kind: str, version: str, seconds: float) -> str:
    """It has begun so many seconds ago; the ``traceparent`` that its orders carry."""
    tell(UpdateBegan(at=time.time() - seconds, update=update, kind=kind, version=version))
    return trace_of(update)


def tell_ended(update: str, kind: str, outcome: str, report: Report, history: str) -> None:
    """It ended well; arguments as those of :class:`~ckpt_transport.events.UpdateEnded`, and where that is kept."""
    ended = UpdateEnded(
        at=time.time(),
        update=update,
        kind=kind,
        version=report.version,
        outcome=outcome,
        seconds=report.seconds,
        phases=dict(report.phases),
        held={report.labels[rank]: seconds for rank, seconds in report.paused.items()},
        nbytes=report.plan.nbytes,
        base=next((delta.base for delta in report.plan.manifest.deltas), ""),
        transports=report.transports,
        received=tuple(BytesReceived(name, far, nbytes) for (name, far), nbytes in report.plan.received.items()),
        staged=report.staged,
        lost=(*report.lost, *report.left.values()),
    )
    tell(ended)
    keep(history, ended, report.timeline, report.labels)


def tell_failed(
    update: str,
    kind: str,
    version: str,
    phases: Mapping[str, float],
    error: CkptTransportError,
    cause: BaseException,
    history: str,
) -> None:
    """It failed with ``error``, which ``cause`` has led to."""
    match error:
        case TaintedError():
            outcome = "tainted"
        case SupersededError():
            outcome = "superseded"
        case _:
            outcome = "aborted" if isinstance(cause, Exception) else "interrupted"
    ended = UpdateEnded(
        at=time.time(),
        update=update,
        kind=kind,
        version=version,
        outcome=outcome,
        seconds=sum(phases.values()),
        phases=dict(phases),
        reason=str(error),
    )
    tell(ended)
    keep(history, ended)
