"""A source rank's part in one update, as the calls that carry it out see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import msgspec

from ckpt_transport.checkpoint import StoredVersion
from ckpt_transport.config import Config
from ckpt_transport.errors import CkptTransportError, UpdateAbortedError
from ckpt_transport.events import speaking_for
from ckpt_transport.memory import Backing
from ckpt_transport.service.base import Brought, BroughtVersions
from ckpt_transport.service.sink_handles import say_gone
from ckpt_transport.service.source_watch import SourceWatch
from ckpt_transport.service.trace import keep_trace
from ckpt_transport.transports import registry
from ckpt_transport.update import messages as m
from ckpt_transport.update.coordinator import Coordinator
from ckpt_transport.update.invitations import Invitees
from ckpt_transport.update.progress import Progress
from ckpt_transport.update.report import Report
from ckpt_transport.update.source import FollowingSource
from ckpt_transport.update.staging_coordinator import StagingCoordinator
from ckpt_transport.update.warm_up_coordinator import WarmUpCoordinator

GONE_SECONDS = 2.0
"""For so long it is asked, after a failure, whose processes are gone."""
Leader = TypeVar("Leader", bound=Coordinator)


class LedUpdate(Generic[Leader]):
    """An update that rank 0 leads. It is remembered whom it has reached, and what they have got.

    Args:
        coordinator: leads it.
        join: rank 0's introduction.
        invitees: who takes part.
        content: of the version that is brought; None where sinks have other bytes of theirs besides.
        brought: which version sinks got last.
        has_led: told the addresses of the sinks, when the coordinator has led them.
        watch: looks after the thread that leads it.
        config: settings.

    Attributes:
        note: adds to the report what only the caller knows.
    """

    def __init__(
        self,
        coordinator: Leader,
        join: m.Join,
        invitees: Invitees,
        content: object,
        brought: BroughtVersions,
        has_led: Callable[[Sequence[str], Coordinator], None],
        watch: SourceWatch,
        config: Config,
    ) -> None:
        self.coordinator, self.join, self.invitees = coordinator, join, invitees
        self._content, self._brought, self._has_led, self._config = content, brought, has_led, config
        self._watch = watch
        self.note: Callable[[Report], Report] = _as_it_is
        self._served: Mapping[str, Brought] = {}

    def to_the_end(self, progress: Progress | None, before_hold: Callable[[], None] | None) -> Report:
        """Lead all of it."""
        with self.going_on():
            report = self.coordinator.lead(self.join, self.invitees, progress, before_hold)
        return self.ended(report)

    def taking_in(
        self,
        take_in: Callable[[], StoredVersion],
        options: Callable[[StoredVersion], Mapping[str, str]],
        progress: Progress | None,
        before_hold: Callable[[], None] | None,
    ) -> Report:
        """Lead all of it, and take the version in while sinks get ready.

        Args:
            take_in: does that.
            options: what other source ranks must ask for alike, once the version is there.
            progress, before_hold: as those of :meth:`to_the_end`.
        """

        def taken_in() -> tuple[m.Join, Sequence[Backing]]:
            stored = take_in()
            self._content = stored.content
            join = msgspec.structs.replace(self.join, manifest=stored.manifest, asked=dict(options(stored)))
            return join, stored.extents

        with self.going_on():
            report = self.coordinator.lead(self.join, self.invitees, progress, before_hold, taken_in)
        return self.ended(report)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """The block leads a part of the update."""
        sinks = self.invitees.sinks
        self._served = self._brought.take_out(sinks)
        try:
            with speaking_for(self.join.label, self.join.update), self._watch.over(self.coordinator.members):
                yield
        except BaseException as error:
            registry.look_again()
            if isinstance(error, UpdateAbortedError) or isinstance(error.__cause__, UpdateAbortedError):
                self.has_changed_nothing()
            if isinstance(error, Exception):
                say_gone(error, self.invitees.gone(GONE_SECONDS))
            raise
        finally:
            self._has_led(sinks, self.coordinator)

    def has_changed_nothing(self) -> None:
        """Sinks serve what they have served."""
        self._brought.put_back(self._served)

    def ended(self, report: Report) -> Report:
        """Remember how it has ended."""
        brought = Brought(report.version, self.join.update, self._content)
        self._brought.remember(set(self.invitees.sinks).difference(report.left), brought)
        keep_trace(report, self._config)
        return self.note(report)


def _as_it_is(report: Report) -> Report:
    return report


def to_warm_up(led: LedUpdate[WarmUpCoordinator], progress: Progress | None, config: Config) -> Report:
    """Lead one that changes nothing.

    Args:
        led, progress: it, and as that of :meth:`LedUpdate.to_the_end`.
        config: settings.
    """
    with led.going_on():
        report = led.coordinator.warm_up(led.join, led.invitees, progress)
    led.has_changed_nothing()
    keep_trace(report, config)
    return report


class LedStaged:
    """One that waits for its commit."""

    def __init__(self, led: LedUpdate[StagingCoordinator], progress: Progress | None) -> None:
        self._led, self._progress = led, progress

    def stage(self) -> None:
        """Lead it to where every sink has staged the version."""
        led = self._led
        with led.going_on():
            led.coordinator.stage(led.join, led.invitees, self._progress)
        led.has_changed_nothing()

    def commit(self, before_hold: Callable[[], None] | None) -> Report:
        """Lead it to its end."""
        with self._led.going_on():
            report = self._led.coordinator.commit(before_hold)
        return self._led.ended(report)

    def drop(self, cause: CkptTransportError) -> None:
        """Have everybody go on as before."""
        self._led.coordinator.drop(cause)


class FollowedStaged:
    """The part of a rank above 0 in such an update.

    Args:
        member: takes part.
        watch: looks after the thread that does.
        ended: called with the name of the update when it is committed, or with nothing when it is dropped.
    """

    def __init__(self, member: FollowingSource, watch: SourceWatch, ended: Callable[[str], None]) -> None:
        self._member, self._watch, self._ended = member, watch, ended

    def stage(self) -> None:
        """Follow rank 0 until it waits for the commit."""
        with self._watch.over(self._member):
            self._member.stage()

    def commit(self, before_hold: Callable[[], None] | None) -> None:
        """Follow rank 0 to the end."""
        with self._watch.over(self._member):
            self._member.commit()
        self._ended(self._member.update)

    def drop(self, cause: CkptTransportError) -> None:
        """Take no part any more, so that rank 0 cannot commit it."""
        self._member.leave(cause)
        self._ended("")
