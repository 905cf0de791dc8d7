"""A publisher takes a step's weights in, brings them to sinks, and lets them go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from ckpt_transport.checkpoint import Lease, Loan, StoredVersion, TensorPairs, Tensors, comes_in_pairs
from ckpt_transport.config import Config
from ckpt_transport.errors import SharedMemoryError, UpdateAbortedError
from ckpt_transport.service.asked import Asked
from ckpt_transport.service.auto import AnyMapping
from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.service.delta_source import DeltaSource
from ckpt_transport.service.intake import Intakes
from ckpt_transport.service.server_versions import ServerVersions
from ckpt_transport.service.sink_handles import AnySink
from ckpt_transport.service.source_updates import SourceUpdates
from ckpt_transport.service.subset import SinkChoice
from ckpt_transport.service.update_calls import UpdateCalls
from ckpt_transport.update.coordinator import Coordinator
from ckpt_transport.update.phases import PhaseClock
from ckpt_transport.update.progress import Progress
from ckpt_transport.update.report import Report
from ckpt_transport.update.turn import Turn


class PublishOptions(NamedTuple):
    """How a version is published; as the arguments of :meth:`ParameterServer.publish`."""

    replicated: bool
    mapping: AnyMapping
    base: str
    supersede: bool


class Publisher:
    """Carries out :meth:`ParameterServer.publish` on one source rank.

    Args:
        versions: of the server.
        deltas: keep a version for the next one to be compared with.
        updates: bring versions to sinks.
        choice: of the sinks.
        calls, guard: of the server.
        config: settings.
    """

    def __init__(
        self,
        versions: ServerVersions,
        deltas: DeltaSource,
        updates: SourceUpdates,
        choice: SinkChoice,
        calls: UpdateCalls,
        guard: CallGuard,
        config: Config,
    ) -> None:
        self._versions, self._deltas, self._updates, self._choice = versions, deltas, updates, choice
        self._calls, self._guard, self._config = calls, guard, config
        self._intakes = Intakes(versions.lends_such)

    def publish(
        self,
        version: str,
        tensors: Tensors | TensorPairs | Loan,
        sinks: Sequence[AnySink] | None,
        progress: Progress | None,
        before_hold: Callable[[], None] | None,
        how: PublishOptions,
    ) -> Report | None:
        """See :meth:`ParameterServer.publish`."""

        def publish(turn: Turn, clock: PhaseClock) -> Report | None:
            base, supersede = how.base, how.supersede
            found = self._versions.mapping_for(version, how.mapping, tensors, lambda: self._choice.named(sinks))
            keeps = self._config.delta != "off" and not base
            wanted = self._config.delta_base
            intake = self._intakes.for_deltas(tensors, found, wanted) if keeps else self._intakes.of(tensors, found)
            lease = Lease()
            take = partial(self._versions.take_in_published, version, tensors, intake, lease)
            take_in = partial(take, replicated=how.replicated, mapping=found, base=base)
            take_in_telling = partial(self._versions.telling, version, take_in)
            asked = Asked(version, lambda: self._choice.all_of(sinks), mapping=self._versions.mapping_of(version))
            if intake.lend and not keeps and not base and self._updates.leads:
                self._versions.check_free(version)
                late = _TakenInLate(take_in)
                act = partial(self._updates.bring_while_taking_in, asked, late.take_in)
                bring_late = partial(act, progress, before_hold, clock, turn)
                brings = partial(self._calls.take_turn, turn, bring_late, supersede=supersede)
                return replace(self._bring_late(version, late, lease, brings, clock), intake=intake.why)

            def bring() -> Report | None:
                report = self._updates.bring(asked, Coordinator, progress, before_hold, clock, turn)
                if keeps:
                    clock.enter("unregister")
                    if not self._deltas.keep(version):
                        self._intakes.had_no_room()
                return report

            try:
                try:
                    stored = take_in_telling()
                except SharedMemoryError:
                    if not self._lets_go_of_base(version) or comes_in_pairs(tensors):
                        raise
                    stored = take_in_telling()
                try:
                    clock.enter("begin")
                    report = self._calls.take_turn(turn, bring, supersede=supersede)
                    return None if report is None else replace(report, intake=intake.why)
                finally:
                    clock.enter("unregister")
                    if not self._versions.keeps(stored):
                        self._versions.let_go(version, self._config.update_timeout)
            finally:
                lease.over = True

        return self._calls.measured(f"publish('{version}')", publish, "register")

    def _bring_late(
        self, version: str, late: _TakenInLate, lease: Lease, bring: Callable[[], Report], clock: PhaseClock
    ) -> Report:
        """Bring a version that is taken in while sinks get ready, and let it go."""
        clock.enter("begin")
        try:
            return bring()
        except UpdateAbortedError:
            if late.failure is None:
                raise
        finally:
            try:
                clock.enter("unregister")
                if late.is_here:
                    self._versions.let_go(version, self._config.update_timeout)
            finally:
                lease.over = True
        raise late.failure

    def _lets_go_of_base(self, version: str) -> bool:
        """Free the version that was kept, when no update uses it; whether there was one."""
        return self._guard.one(f"publish('{version}')", self._config.update_timeout, self._deltas.let_go)


class _TakenInLate:
    """A version that is taken in while sinks get ready.

    Args:
        take_in: does that.

    Attributes:
        is_here: it was taken in.
        failure: why it was not.
    """

    def __init__(self, take_in: Callable[[], StoredVersion]) -> None:
        self._take_in = take_in
        self.is_here = False
        self.failure: Exception | None = None

    def take_in(self) -> StoredVersion:
        try:
            stored = self._take_in()
        except Exception as error:
            self.failure = error
            raise
        self.is_here = True
        return stored
