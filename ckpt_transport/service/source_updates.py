"""A source rank's part in updates: rank 0 leads them, the others follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from ckpt_transport.checkpoint import Store, StoredVersion
from ckpt_transport.config import Config
from ckpt_transport.planning import Manifest
from ckpt_transport.service.asked import Asked
from ckpt_transport.service.compared import Identity, identity_of
from ckpt_transport.service.delta_source import DeltaSource
from ckpt_transport.service.led_update import Leader, LedStaged, LedUpdate, to_warm_up
from ckpt_transport.service.previous import previous_version
from ckpt_transport.service.sink_handles import LocatedSinks
from ckpt_transport.service.source_rank import SourceRank, Versions
from ckpt_transport.service.staged_job import StagedJob
from ckpt_transport.service.world import World
from ckpt_transport.update.coordinator import Coordinator
from ckpt_transport.update.invitations import Invitees
from ckpt_transport.update.phases import PhaseClock
from ckpt_transport.update.progress import Progress
from ckpt_transport.update.report import Report
from ckpt_transport.update.restore import RestoreCoordinator
from ckpt_transport.update.staging_coordinator import StagingCoordinator
from ckpt_transport.update.turn import Turn
from ckpt_transport.update.warm_up_coordinator import WarmUpCoordinator

Result = TypeVar("Result")


class SourceUpdates:
    """Brings versions of one store to sinks, all of them or what differs from the version before.

    Args:
        store: of the versions.
        here: this rank.
        deltas: find what differs.
        world: the source ranks.
        config: settings.
    """

    def __init__(self, store: Store, here: SourceRank, deltas: DeltaSource, world: World, config: Config) -> None:
        self._store, self._here, self._deltas, self._world, self._config = store, here, deltas, world, config

    def bring(
        self,
        asked: Asked,
        leader: type[Coordinator],
        progress: Progress | None,
        before_hold: Callable[[], None] | None,
        clock: PhaseClock,
        turn: Turn,
    ) -> Report | None:
        """Bring a version to sinks, to the end.

        Args:
            asked: what, and to whom.
            leader: how rank 0 leads that.
            progress, before_hold: as those of :meth:`ParameterServer.update`.
            clock: its phases go on.
            turn: of the call.

        Returns, Raises: as :meth:`ParameterServer.update`.
        """
        if self._world.rank > 0:
            stored = asked.part.of(self._store.get(asked.version), alone=False)
            update, version = "", identity_of(stored)
            try:
                options = asked.options(stored, self._config)
                update = self._here.follow(asked.version, *self._offers(stored, deltas=leader.takes_deltas), options)
            finally:
                self._followed(version, update)
            return None
        return self._lead(asked, leader, clock, turn, lambda led: led.to_the_end(progress, before_hold))

    def bring_while_taking_in(
        self,
        asked: Asked,
        take_in: Callable[[], StoredVersion],
        progress: Progress | None,
        before_hold: Callable[[], None] | None,
        clock: PhaseClock,
        turn: Turn,
    ) -> Report:
        """As :meth:`bring` on rank 0, which takes the version in while sinks get ready, and other ranks come.

        Raises: as :meth:`bring`; what ``take_in`` raises is the cause of an UpdateAbortedError.
        """
        here, nothing_yet = self._here, StoredVersion(Manifest(asked.version, (), ()), ())
        with here.leading(asked.version) as announce:
            invitees = here.invitees(asked.version, asked.located())
            led = here.lead(nothing_yet, invitees, Coordinator, clock, turn, announce)
            return led.taking_in(take_in, lambda stored: asked.options(stored, self._config), progress, before_hold)

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self._world.rank == 0

    def stage(
        self, asked: Asked, job: StagedJob[Report], progress: Progress | None, clock: PhaseClock, turn: Turn
    ) -> None:
        """Bring a version beside what sinks serve, as far as the moment at which its commit begins.

        Args, Raises: as those of :meth:`ParameterServer.stage`; the clock's phases go on, and the job has it.
        """
        if self._world.rank > 0:
            stored = self._store.get(asked.version)
            versions, holds = self._offers(stored, deltas=True)
            options, followed = asked.options(stored, self._config), partial(self._followed, identity_of(stored))
            self._here.follow_staging(asked.version, versions, holds, options, job, followed)
            return
        self._lead(asked, StagingCoordinator, clock, turn, lambda led: job.stage(LedStaged(led, progress)))

    def warm_up(self, asked: Asked, progress: Progress | None, turn: Turn, clock: PhaseClock) -> Report | None:
        """Do with a version what an update does before it changes anything.

        Args, Returns, Raises: as those of :meth:`ParameterServer.warm_up`; the clock's phases go on.
        """
        if self._world.rank > 0:
            stored = self._store.get(asked.version)
            versions, holds = self._offers(stored, deltas=WarmUpCoordinator.takes_deltas)
            self._here.follow(asked.version, versions, holds, asked.options(stored, self._config))
            return None
        lead = partial(to_warm_up, progress=progress, config=self._config)
        return self._lead(asked, WarmUpCoordinator, clock, turn, lead)

    def restore(
        self, sinks: LocatedSinks, before_hold: Callable[[], None] | None, clock: PhaseClock, turn: Turn
    ) -> Report:
        """Have sinks serve again what they did before; see :meth:`ParameterServer.rollback`.

        Args:
            sinks: all that go back.
            before_hold, clock, turn: as those of :meth:`bring`.
        """
        manifest = Manifest(previous_version(sinks.addresses, self._config), (), ())
        invitees = self._here.alone_to(sinks)
        led = self._here.lead(StoredVersion(manifest, ()), invitees, RestoreCoordinator, clock, turn)
        return led.to_the_end(None, before_hold)

    def _lead(
        self,
        asked: Asked,
        leader: type[Leader],
        clock: PhaseClock,
        turn: Turn,
        act: Callable[[LedUpdate[Leader]], Result],
    ) -> Result:
        """Rank 0 leads what was asked for; other ranks hear it when that fails."""
        part, here = asked.part, self._here
        with here.leading(asked.version) as announce:
            stored, located = part.of(self._store.get(asked.version), alone=self._world.size == 1), asked.located()
            invited, options = located.addresses, asked.options(stored, self._config)
            base = part.base_for(stored, here.brought, invited)
            invitees = replace(
                here.invitees(asked.version, located), base=base, base_updates=here.brought.updates(base, invited)
            )

            def lead(sent: StoredVersion, told: Invitees) -> LedUpdate[Leader]:
                return here.lead(sent, told, leader, clock, turn, announce, options)

            if not leader.takes_deltas or self._config.delta == "off":
                return act(lead(stored, invitees))
            others = here.others(asked.version, invitees, turn, announce)
            return self._deltas.bring(stored, invitees, others, clock, turn, lead, act)

    def _offers(self, stored: StoredVersion, *, deltas: bool) -> tuple[Versions, str]:
        """What a rank above 0 brings, and by which update it has got what it can compare that with."""
        if not deltas or self._config.delta == "off":
            return lambda base_update, served: stored, ""
        return partial(self._deltas.offered, stored), self._deltas.holds(stored)

    def _followed(self, version: Identity, update: str) -> None:
        """An update that rank 0 has led has ended; one without a name has failed."""
        self._deltas.let_go_of_carriers()
        if update:
            self._deltas.followed(version, update)
