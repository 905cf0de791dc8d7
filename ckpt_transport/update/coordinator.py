"""The coordinator, source rank 0, leads everybody through one update, or back."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

from ckpt_transport.config import Config
from ckpt_transport.control import Mailbox
from ckpt_transport.errors import (
    CheckpointError,
    CkptTransportError,
    ConfigError,
    DeltaRefusedError,
    PlanError,
    PluginError,
    SupersededError,
    UpdateAbortedError,
)
from ckpt_transport.execution import StageEvent
from ckpt_transport.memory import Backing
from ckpt_transport.planning import Pauses, Plan, Settings, TensorRange, Topology, expect_pauses, topology_for
from ckpt_transport.reasons import in_words
from ckpt_transport.transports import registry
from ckpt_transport.transports.interface import Traits
from ckpt_transport.update import messages as m
from ckpt_transport.update.bandwidths import between_hosts
from ckpt_transport.update.challenges import Welcomes
from ckpt_transport.update.ending import tell_began, tell_ended, tell_failed
from ckpt_transport.update.introduction import rates_of, staging_of, topology_of
from ckpt_transport.update.invitations import Invitations, Invitees
from ckpt_transport.update.leading import Leading
from ckpt_transport.update.membership import Membership
from ckpt_transport.update.outcome import Outcome
from ckpt_transport.update.participant import Participant
from ckpt_transport.update.phases import PhaseClock
from ckpt_transport.update.plan_cache import PlanCache
from ckpt_transport.update.progress import Progress, never_raises
from ckpt_transport.update.report import Report
from ckpt_transport.update.routes import RouteNames, RouteTable
from ckpt_transport.update.shielded import shielded
from ckpt_transport.update.turn import Turn

Result = TypeVar("Result")
TakeIn = Callable[[], tuple[m.Join, Sequence[Backing]]]
"""Takes a version in; returns how rank 0 introduces itself with it, and what is behind its extents."""
REFUSALS = (DeltaRefusedError, PlanError, CheckpointError)
"""Errors that end an update by a delta, where everything may be taken."""


class Coordinator:
    """Leads one update. Every method may raise what a participant reported.

    Args:
        update: a new name for it.
        mailbox: of source rank 0.
        config: deadlines, transport, bucket size.
        table, names, plans: routes, and the last plan, that are kept between updates.
        extents: what is behind rank 0's extents.
        clock: of the caller's call.
        turn: of the update.
        welcomes: what members of the last update have said for the next invitation; kept between updates.
    """

    kind: ClassVar[str] = "update"
    """What whoever watches is told that this is."""
    resumable: ClassVar[bool] = False
    """Whether the update goes on when members leave."""
    takes_deltas: ClassVar[bool] = True
    """Whether what differs from what is served may be brought in place of everything."""

    def __init__(
        self,
        update: str,
        mailbox: Mailbox,
        config: Config,
        table: RouteTable,
        names: RouteNames,
        plans: PlanCache,
        extents: Sequence[Backing],
        clock: PhaseClock,
        turn: Turn,
        welcomes: Welcomes,
    ) -> None:
        self._mailbox, self._config, self._plans, self._clock = mailbox, config, plans, clock
        deadline = time.monotonic() + config.update_timeout
        self._local = Participant(mailbox, table, plans, extents, None, deadline)
        self._members = Membership(update, mailbox, config, deadline, turn)
        self._steps = Leading(self._members, self._local, names, config, resumable=self.resumable)
        self._welcomes = welcomes
        self._update, self._in_place, self._version = update, "", ""
        self._pauses: Pauses | None = None
        self._brings_delta = self._rolls_back = False

    def lead(
        self,
        myself: m.Join,
        invitees: Invitees,
        progress: Progress | None = None,
        before_hold: Callable[[], None] | None = None,
        take_in: TakeIn | None = None,
    ) -> Report:
        """Run the whole update.

        Args:
            myself: rank 0's own introduction.
            invitees: who else is to take part.
            progress: told about the bytes that rank 0 has sent.
            before_hold: called when all is ready, just before forward passes are held.
            take_in: called while sinks get ready, where rank 0 has nothing of the version before. What it raises ends
                the update.

        Raises:
            UpdateAbortedError: it failed and changed nothing.
            SupersededError: the same, because a newer update has taken its turn.
            TaintedError: it failed when some sinks had begun to apply, or did not serve it when they were told to.
        """

        def bring() -> Report:
            self._gather(myself, invitees, take_in)
            return self._conclude(*self._bring(never_raises(progress), before_hold or (lambda: None)))

        return self._or_nowhere(bring)

    def _gather(self, myself: m.Join, invitees: Invitees, take_in: TakeIn | None = None) -> None:
        def taken_in() -> m.Join | None:
            if take_in is None:
                self._local.check_lent()
                return None
            join, extents = take_in()
            self._local.has_taken_in(extents)
            return join

        invitations = Invitations(
            self._members,
            self._mailbox,
            self._config,
            invitees,
            self._welcomes,
            staged=self._wants_staged,
            meanwhile=taken_in,
        )
        self._clock.enter("join")
        self._version = "" if myself.manifest is None else myself.manifest.version
        self._brings_delta = invitees.delta
        self._members.trace = tell_began(self._update, self.kind, self._version, self._clock.seconds)
        self._members.reached = invitations.reached
        invitations.gather(myself)
        if self.resumable:  # it goes on without those that leave, and they may be couriers
            self._members.use_no_couriers()
        else:
            self._members.find_couriers()

    def _or_nowhere(self, act: Callable[[], Result]) -> Result:
        """Do a part of the update. Where it fails before the commit, all sinks go on with what they serve."""
        try:
            return act()
        except BaseException as cause:
            if self._members.turn.decided:
                raise
            error, interrupt = self._roll_back(cause)
            if not isinstance(cause, Exception):
                interrupt = cause
            if interrupt is None:
                raise error from cause
            raise interrupt from error

    def _conclude(self, made: Plan, events: Sequence[StageEvent]) -> Report:
        """Have everybody serve what is there; nobody goes back any more. An interrupt waits until that is known.

        Raises:
            TaintedError: a sink that lives does not serve the version; says which serve what.
        """
        self._clock.enter("commit")
        (outcome, interrupt), outside = shielded(lambda: self._commit(made.manifest.version), self._members.hurry)
        interrupt = outside or interrupt
        fault = outcome.fault_of_commit()
        if fault is not None:
            self._tell_failed(fault, fault)
            if interrupt is not None:
                raise interrupt from fault
            raise fault
        self._clock.enter("end")
        report = self._report(made, events, outcome.paused, outcome.lost)
        tell_ended(self._update, self.kind, "committed", report, self._config.history)
        if interrupt is not None:
            raise interrupt
        return report

    def _report(
        self, made: Plan, events: Sequence[StageEvent], paused: dict[int, float], lost: tuple[str, ...]
    ) -> Report:
        return Report(
            made.manifest.version,
            made,
            self._clock.phases,
            paused,
            events,
            {rank: join.label for rank, join in enumerate(self._members.joins)},
            lost,
            dict(self._members.left),
            self._steps.apply_summary,
            bool(self._steps.staged),
            self._in_place,
            self._pauses,
        )

    @property
    def members(self) -> Membership:
        """Who takes part."""
        return self._members

    @property
    def fellows(self) -> tuple[str, ...]:
        """The addresses of the other source ranks that have come."""
        return self._members.fellows

    @property
    def nonces(self) -> dict[str, str]:
        """What is said to each member carries, by address."""
        return self._members.nonces

    # -- phases -------------------------------------------------------------------------------------------------

    def _bring(self, progress: Progress, before_hold: Callable[[], None]) -> tuple[Plan, Sequence[StageEvent]]:
        """Everything between joining and commit: every sink has every byte then."""
        made = self._plan()
        if not self._steps.staged:
            self._hold(before_hold)
        events = self._run(made, progress)
        if self._steps.staged:
            self._apply(before_hold)
        return made, events

    def _plan(self) -> Plan:
        """Plan, and have all get ready."""
        self._clock.enter("plan")
        self._check_alike()
        made = self._make_plan((), self._config.transport)
        joins = self._members.joins
        self._pauses = expect_pauses(made, staging_of(joins), rates_of(joins))
        self._steps.staged = secrets.token_hex(16) if self._stages(self._pauses) else ""
        self._prepare(made)
        return made

    def _check_alike(self) -> None:
        """
        Raises:
            DeltaRefusedError: some sources bring what differs, and others everything.
        """
        held = [(join.label, bool(join.manifest.deltas)) for join in self._members.joins if join.manifest is not None]
        unlike = [label for label, is_delta in held if is_delta != self._brings_delta]
        if unlike:
            one, others = ("everything", "what differs") if self._brings_delta else ("what differs", "everything")
            raise DeltaRefusedError(f"{unlike[0]} brings {one}, and other source ranks {others}")

    def _run(self, made: Plan, progress: Progress) -> Sequence[StageEvent]:
        self._clock.enter("run")
        events = self._steps.run(made, progress)
        self._clock.belongs_to("hold", self._steps.stopping)
        return events

    def _apply(self, before_hold: Callable[[], None]) -> None:
        """Exchange what is staged and what is served."""
        self._hold(before_hold)
        self._clock.enter("apply")
        self._steps.apply()

    def _hold(self, before_hold: Callable[[], None]) -> None:
        self._members.turn.keep()
        self._clock.enter("hold")
        before_hold()
        self._steps.hold()

    def _prepare(self, made: Plan) -> None:
        self._clock.enter("agree")
        self._steps.agree(made)
        self._clock.enter("connect")
        self._steps.connect()

    def _make_plan(self, present: Sequence[TensorRange], transport: str) -> Plan:
        joins = self._members.joins
        shards = [join.manifest.owned_by(rank) for rank, join in enumerate(joins) if join.manifest is not None]
        settings = Settings(
            transport=transport,
            bucket_bytes=self._config.bucket_bytes,
            ring_depth=self._config.ring_depth,
            digests=self._config.integrity == "always",
            beside_passes=self._wants_staged and not any(join.unstaged for join in joins),
        )
        try:
            topology = self._topology()
            if deltas := [delta for shard in shards for delta in shard.deltas]:
                topology = topology_for(topology, deltas, [spec for shard in shards for spec in shard.specs.values()])
            return self._plans.make(shards, topology, self._traits(), settings, present, rates_of(joins))
        except PlanError as error:
            for join in joins:
                for name, reason in join.unavailable.items():
                    error.add_note(f"{join.label}: {name} is not available: {reason}")
            raise

    def _topology(self) -> Topology:
        """Who takes part, as the planner sees it."""
        return topology_of(self._members.joins)

    def _traits(self) -> dict[str, Traits]:
        """Of the transports that may be used: those that run here and, where rank 0 moves no byte, all others, too."""
        myself = self._members.joins[0]
        assert myself.manifest is not None
        names = myself.transports if myself.manifest.tensors else (*myself.transports, *myself.unavailable)
        found = {}
        for name in names:
            with contextlib.suppress(PluginError):
                found[name] = between_hosts(name, registry.load(name).traits, self._members.joins)
        return found

    def _stages(self, expected: Pauses) -> bool:
        """Whether this update is staged; else why not is known afterwards.

        Args:
            expected: how long requests are held either way.

        Raises:
            ConfigError: it was asked for, and a sink cannot.
            DeltaRefusedError: the version is a difference to what is served, and a sink cannot stage it.
        """
        if not self._wants_staged:
            return False
        self._in_place = "; ".join(dict.fromkeys(join.unstaged for join in self._members.joins if join.unstaged))
        if any(join.manifest is not None and join.manifest.deltas for join in self._members.joins):
            if self._in_place:
                raise DeltaRefusedError(self._in_place)
            return True
        if self._in_place and self._must_be_staged:
            raise ConfigError(f"the version is to be staged, and not every sink can do that: {self._in_place}")
        if not self._in_place and self._takes_the_shorter and expected.in_place_is_shorter:
            self._in_place = f"that was expected to hold requests for a shorter time: {expected}"
        return not self._in_place

    @property
    def _takes_the_shorter(self) -> bool:
        return self._config.commit == "shortest" and not self._must_be_staged

    @property
    def _wants_staged(self) -> bool:
        return self._config.commit != "in_place" and not self.resumable

    @property
    def _must_be_staged(self) -> bool:
        return self._config.commit == "staged"

    def _commit(self, version: str) -> tuple[Outcome, BaseException | None]:
        """Tell everybody to serve; what became of it, and an interrupt that came meanwhile."""
        members = self._members
        members.turn.decide()
        interrupt = self._steps.decide(self._config.join_timeout) if self._steps.staged else None
        later = members.tell_surely(m.Commit(self._update), members.held_first)
        interrupt = members.hear_each(members.has_ended, members.others, self._config.join_timeout, interrupt or later)
        for invited, welcome in members.welcomes(members.committed):
            self._welcomes.remember(invited, welcome)
        return Outcome(members, version), interrupt

    def _roll_back(self, cause: BaseException) -> tuple[CkptTransportError, BaseException | None]:
        """Tell everybody to stop, and hear who is tainted.

        Returns: the error that says so, and an interrupt that came meanwhile.
        """
        self._rolls_back = True
        reason = in_words(cause)
        reason = "; ".join([reason, *getattr(cause, "__notes__", ())])
        again = self._brings_delta and isinstance(cause, REFUSALS)
        abort = m.Abort(self._update, reason, again)
        _, interrupt = shielded(lambda: self._members.tell_aborted(abort), self._members.hurry)
        try:
            self._local.abort(cause)
        except Exception:
            raise
        except BaseException as later:
            interrupt = interrupt or later
        (error, inside), outside = shielded(lambda: self._hear_aborted(cause, reason), self._members.hurry)
        return error, interrupt or outside or inside

    def _hear_aborted(self, cause: BaseException, reason: str) -> tuple[CkptTransportError, BaseException | None]:
        members = self._members
        known = None if isinstance(cause, Exception) else cause
        patience = self._config.heartbeat_timeout + self._config.join_timeout
        interrupt = members.hear_each(members.has_ended, members.others, patience, known)
        unchanged = SupersededError if isinstance(cause, SupersededError) else UpdateAbortedError
        error = Outcome(members, "").failure(reason, applying=self._steps.applying, unchanged=unchanged)
        self._tell_failed(error, cause)
        return error, interrupt

    def _tell_failed(self, error: CkptTransportError, cause: BaseException) -> None:
        self._clock.enter("end")
        phases, history = self._clock.phases, self._config.history
        tell_failed(self._update, self.kind, self._version, phases, error, cause, history)
