"""Events are plain values, so that they can be logged, counted and sent."""

from __future__ import annotations

import logging
from typing import ClassVar

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    """Something has become of a version.

    Attributes:
        at: when, in seconds since the epoch.
        level: how the log takes it.
    """

    at: float
    level: ClassVar[int] = logging.INFO


class UpdateBegan(Event, frozen=True, tag="update_began"):
    """An update that this process leads has begun, or a rollback.

    Attributes:
        update, kind, version: as those of :class:`UpdateEnded`.
    """

    update: str
    kind: str
    version: str
    level: ClassVar[int] = logging.DEBUG


class StepEnded(Event, frozen=True, tag="step_ended"):
    """A member of this process has followed an order of an update that is traced.

    Attributes:
        update: the name that its members share.
        member: its label.
        step: the order's, as ``run``.
        seconds: how long that took.
        trace: the ``traceparent`` that came with the order.
        error: why it failed; empty when it did not.
    """

    update: str
    member: str
    step: str
    seconds: float
    trace: str
    error: str = ""
    level: ClassVar[int] = logging.DEBUG


class BytesReceived(msgspec.Struct, frozen=True):
    """Bytes that came to the members of an update.

    Attributes:
        transport: its name.
        far: they came from other hosts.
        nbytes: how many.
    """

    transport: str
    far: bool
    nbytes: int


class UpdateEnded(Event, frozen=True, tag="update_ended"):
    """An update that this process has led has ended, or a rollback.

    Attributes:
        update: the name that its members share.
        kind: ``update``, ``p2p``, ``rollback`` or ``warm-up``.
        version: that was to be served.
        outcome: ``committed``, ``dismissed`` (a warm-up that ended well), ``aborted``, ``superseded``, ``tainted`` or
            ``interrupted``.
        seconds: how long it took, from the caller's call.
        phases: seconds of each phase that was begun, in order.
        held: seconds for which each sink held its forward passes, by its label.
        nbytes: what was moved: all that the version has, or what carries its difference to a base.
        base: the version that it was sent as the difference to; empty where everything was sent.
        transports: that were used.
        received: bytes of buckets that came to members over each transport, within hosts and from other hosts.
        staged: the version was staged beside what was served.
        lost: labels of those that died or left.
        reason: why it was not committed.
    """

    update: str
    kind: str
    version: str
    outcome: str
    seconds: float
    phases: dict[str, float] = {}
    held: dict[str, float] = {}
    nbytes: int = 0
    base: str = ""
    transports: tuple[str, ...] = ()
    received: tuple[BytesReceived, ...] = ()
    staged: bool = False
    lost: tuple[str, ...] = ()
    reason: str = ""


class ServingChanged(Event, frozen=True, tag="serving_changed"):
    """A sink of this process serves another version, or must not serve.

    Attributes:
        update: the one that has done it; empty where none has.
        sink: its label.
        version: the one it serves, or served before it was tainted.
        tainted: why it must not serve; empty when it may.
        in_doubt: why it holds its forward passes until it knows which version the others serve; empty when it knows.
        staging_nbytes: bytes of memory that it stages versions in, and keeps the one before.
    """

    update: str
    sink: str
    version: str
    tainted: str = ""
    in_doubt: str = ""
    staging_nbytes: int = 0
