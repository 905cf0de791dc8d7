"""A parameter server is the source side: it holds versions and brings them to sinks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import ParamSpec, Self, TypeVar

from ckpt_transport.checkpoint import Loan, TensorPairs, Tensors
from ckpt_transport.config import Config
from ckpt_transport.errors import ConfigError, UpdateAbortedError
from ckpt_transport.reasons import named_reason
from ckpt_transport.service.asked import Asked
from ckpt_transport.service.auto import AnyMapping
from ckpt_transport.service.awaited_job import AwaitedJob, staged_awaiting
from ckpt_transport.service.base import WHOLE, BroughtPart
from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.service.delta_source import DeltaSource
from ckpt_transport.service.in_thread import in_thread
from ckpt_transport.service.publisher import Publisher, PublishOptions
from ckpt_transport.service.server_versions import ServerVersions, store_of
from ckpt_transport.service.sink_handles import AnySink, LocatedSinks
from ckpt_transport.service.source_rank import SourceRank
from ckpt_transport.service.source_updates import SourceUpdates
from ckpt_transport.service.staged_job import StagedJob
from ckpt_transport.service.stager import Stager
from ckpt_transport.service.subset import SinkChoice
from ckpt_transport.service.turns import Turns
from ckpt_transport.service.update_calls import UpdateCalls
from ckpt_transport.service.version_calls import VersionCalls
from ckpt_transport.service.watched import let_watch
from ckpt_transport.service.world import World
from ckpt_transport.update.coordinator import Coordinator
from ckpt_transport.update.p2p_coordinator import P2PCoordinator
from ckpt_transport.update.phases import PhaseClock
from ckpt_transport.update.progress import Progress
from ckpt_transport.update.report import Report
from ckpt_transport.update.turn import Turn

Call = ParamSpec("Call")
Result = TypeVar("Result")


class ParameterServer(VersionCalls):
    """A parameter server is one source rank. All ranks make the same calls in the same order, and with equal options.

    Any thread may call. ``update``, ``unregister`` and ``close`` are served one after the other: a call waits until the
    one that runs has ended, for at most ``update_timeout``. ``register`` and ``lend`` do not wait for an update, only
    for each other. A child after a fork makes a server of its own; it is refused here.

    Args:
        config: settings; by default from the environment.
        rank, world_size: of this source among the sources; by default ``RANK`` and ``WORLD_SIZE`` as torchrun sets
            them, else 0 of 1.

    Ranks above 0 find rank 0 at ``config.coordinator``, or through the store at ``MASTER_ADDR`` and ``MASTER_PORT``
    when that is empty. Rank 0 waits for them for ``join_timeout``, and they for rank 0 for ``update_timeout``. Nobody
    waits for a rank whose ``register`` fails, that an error ends, or that asks for something else: all hear so.

    Raises:
        ConfigError: the rank is not one of the world, or several sources could not find each other.
    """

    def __init__(self, config: Config | None = None, *, rank: int | None = None, world_size: int | None = None) -> None:
        self._call_guard = CallGuard("ParameterServer")
        self.config = Config.given(config)
        let_watch(self.config)
        self._world = World.find(rank, world_size)
        self.rank, self.world_size = self._world.rank, self._world.size
        self._store = store_of(self._world, self.config)
        self._here = SourceRank(self._world, self.config)
        self._deltas = DeltaSource(self._store, self._here.brought, self._here.forget, self.config)
        self._updates = SourceUpdates(self._store, self._here, self._deltas, self._world, self.config)
        self._turns = Turns(self._call_guard, alone=self.world_size == 1, raise_interrupt=self._here.raise_interrupt)
        self._asked, after = self._here.absences.asked, self._deltas.let_go_unless_served
        self._calls = UpdateCalls(self.rank, self._turns, self._asked, after, self.config.update_timeout)
        versions = ServerVersions(self._store, self._here, self._call_guard, self.config)
        super().__init__(versions, self.config.update_timeout)
        self._choice = SinkChoice(self.config)
        self._publisher = Publisher(
            versions, self._deltas, self._updates, self._choice, self._calls, self._call_guard, self.config
        )
        self._stager: Stager[Report] = Stager(
            self._turns, self._call_guard, self._calls.explained, self._asked.has_ended, self.config.update_timeout
        )

    def listen(self) -> str:
        """On rank 0: listen at ``config.coordinator`` now, and return the address that the other ranks are to be given.

        It says which port was got where ``coordinator`` asks for any free one, as ``tcp://10.0.0.1:0`` does.

        Raises:
            ConfigError: there is no ``coordinator``, or this is not rank 0.
            ControlError: somebody else listens there.
        """
        if self.rank > 0:
            raise ConfigError(f"source rank {self.rank} listens for nobody: call listen() on rank 0")
        return self._call_guard.one("listen()", self.config.update_timeout, self._here.listen)

    def update(
        self,
        version: str,
        sinks: Sequence[AnySink] | None = None,
        progress: Progress | None = None,
        before_hold: Callable[[], None] | None = None,
        *,
        only: Collection[str] | None = None,
        base: str = "",
        supersede: bool = False,
    ) -> Report | None:
        """Bring ``version`` to every sink, everywhere or nowhere.

        Args:
            version: a registered one.
            sinks: addresses; or handles, as Ray's of actors, and objects whose ``address`` is one. By default those of
                the configuration. Only rank 0 needs to know them.
            progress: told about the bytes this rank has sent. Its first error is logged, and it is not told any more.
            before_hold: called on rank 0 when all is ready and only forward passes must still be held; for those who
                pause an engine by other means. What it raises aborts the update.
            only: names of the tensors to bring; the others are as in the base. All ranks say the same.
            base: what all sinks must serve, where not all tensors are brought: by default what the version was
                registered with, else what this server has brought to them last.
            supersede: updates that other threads have asked for before end with SupersededError, where they have not
                held forward passes yet; else this one waits for them. What is staged and not committed is dropped. Of
                several source ranks' updates only the one that runs is ended.

        Returns: what happened, on rank 0; None on the others.

        Raises:
            UpdateAbortedError: it failed and every sink still serves its old version.
            JoinError: the same, on a rank above 0: rank 0 does not bring this version, or not with these options.
            SupersededError: the same, because a newer update has taken its place.
            TaintedError: it failed half-way; names the sinks that must not serve.
            StoreError: there is no such version.
            ConfigError: the sinks make no sense.
            UsageError: another call has not ended within ``update_timeout``, or is one that this thread is in.
            KeyboardInterrupt: and what else interrupts; its ``__cause__`` on rank 0 is one of the first two, or None
                when every sink serves the new version. Who interrupts again while it ends need not wait for the slow.
        """

        def bring(turn: Turn, clock: PhaseClock) -> Report | None:
            part, mapping = BroughtPart(only, base), self._versions.mapping_of(version)
            asked = Asked(version, lambda: self._choice.all_of(sinks), part, mapping)
            return self._updates.bring(asked, Coordinator, progress, before_hold, clock, turn)

        self._asked.asks(version)
        return self._calls.in_turn(f"update('{version}')", bring, supersede=supersede)

    def stage(
        self,
        version: str,
        sinks: Sequence[AnySink] | None = None,
        progress: Progress | None = None,
        *,
        supersede: bool = False,
    ) -> StagedJob[Report]:
        """Bring ``version`` to every sink beside what it serves, and leave the moment of the commit to the caller.

        When it returns, every sink has all bytes and their digests are right; engines have served throughout. The
        version may be unregistered and its tensors be changed. Sinks wait for ``commit_timeout`` seconds, and as long
        as this process lives; they take no other update meanwhile. Other updates of this server wait, too.

        Args:
            version, sinks, progress, supersede: as those of :meth:`update`.

        Returns: what commits it, or drops it.

        Raises:
            UpdateAbortedError, SupersededError, JoinError, StoreError, ConfigError, KeyboardInterrupt: as
                :meth:`update`; also where a sink cannot stage a version.
            UsageError: as :meth:`update`.
        """

        self._asked.asks(version)
        asked, clock = self._whole(version, partial(self._choice.all_of, sinks), "stage"), PhaseClock()

        def stage(turn: Turn) -> StagedJob[Report]:
            bring = partial(self._updates.stage, asked, progress=progress, clock=clock, turn=turn)
            return self._stager.stage(version, bring, turn, supersede=supersede)

        return self._calls.explained(f"stage('{version}')", stage)

    def warm_up(
        self, version: str, sinks: Sequence[AnySink] | None = None, progress: Progress | None = None
    ) -> Report | None:
        """Do with ``version`` what an update of it does before it changes anything, so that the next one need not.

        Everybody joins, plans and connects; memory is mapped and page-locked, kernels are compiled. Where all sinks can
        stage a version, it comes beside what they serve, in place of what they have kept for a rollback. Then all of it
        is called off: no forward pass was held, sinks serve what they did, and what was found out is kept. The version
        may be brought afterwards, or unregistered.

        Args:
            version, sinks, progress: as those of :meth:`update`.

        Returns: on rank 0 what was done: :attr:`Report.staged`, or why not (:attr:`Report.in_place`). None on others.

        Raises: as :meth:`update`; every sink serves what it did.
        """

        self._asked.asks(version)
        asked = self._whole(version, partial(self._choice.all_of, sinks), "warm_up")
        return self._calls.in_turn(f"warm_up('{version}')", partial(self._updates.warm_up, asked, progress))

    def _whole(self, version: str, sinks: Callable[[], LocatedSinks], call: str) -> Asked:
        return Asked(version, sinks, WHOLE, self._versions.mapping_of(version), call)

    def publish(
        self,
        version: str,
        tensors: Tensors | TensorPairs | Loan,
        sinks: Sequence[AnySink] | None = None,
        progress: Progress | None = None,
        before_hold: Callable[[], None] | None = None,
        *,
        replicated: bool = False,
        mapping: AnyMapping = None,
        base: str = "",
        supersede: bool = False,
    ) -> Report | None:
        """Bring a step's weights to every sink: take them in, update, and let them go, whether that succeeds or not.

        This is what a training loop calls. Tensors are lent, which takes two buckets of memory; those that cannot be
        are copied into the pool of the step before. :attr:`Report.intake` says which and why. When it returns, they may
        be changed. With ``delta`` on a copy is kept as the base of the next step, where ``delta_base`` says; what an
        adapter makes of them is computed for that, so that sinks are sent what has changed in what they serve.

        Args:
            version: a name that no version has here.
            tensors, replicated, mapping, base: this rank's, as those of :meth:`register`; ``"auto"`` asks ``sinks``.
            sinks, progress, before_hold, supersede: as those of :meth:`update`.

        Returns: as :meth:`update`; the phases begin with ``register`` and end with ``unregister``.

        Raises: as :meth:`register` or :meth:`lend`, and :meth:`update`.
        """
        self._asked.asks(version)
        how = PublishOptions(replicated, mapping, base, supersede)
        return self._publisher.publish(version, tensors, sinks, progress, before_hold, how)

    async def awaiting(self, call: Callable[Call, Result], *args: Call.args, **kwargs: Call.kwargs) -> Result:
        """Await a call of this server, as ``await server.awaiting(server.publish, "step-42", tensors)``.

        It runs in a thread of its own, and the event loop goes on. Where the task is cancelled, the update ends as by
        an interrupt, before this returns: everywhere or nowhere. The ``__cause__`` of its CancelledError says which, as
        that of an interrupt of :meth:`update` does.
        """
        return await self._in_thread(partial(call, *args, **kwargs))

    async def staging(
        self,
        version: str,
        sinks: Sequence[AnySink] | None = None,
        progress: Progress | None = None,
        *,
        supersede: bool = False,
    ) -> AwaitedJob[Report]:
        """Stage a version from an event loop: ``job = await server.staging("step-42")``, and ``await job.commit()``.

        The loop goes on meanwhile. Where the task is cancelled, nothing is staged any more when this returns.

        Args:
            version, sinks, progress, supersede: as those of :meth:`stage`.

        Raises: as :meth:`stage`.
        """
        return await staged_awaiting(
            partial(self.stage, version, sinks, progress, supersede=supersede), self._in_thread
        )

    async def _in_thread(self, call: Callable[[], Result], /) -> Result:
        return await in_thread(call, self._here.interrupt, self._here.forget_interrupt)

    def update_p2p(
        self,
        version: str,
        sinks: Sequence[AnySink] | None = None,
        ranks: Sequence[int] | None = None,
        progress: Progress | None = None,
        before_hold: Callable[[], None] | None = None,
    ) -> Report | None:
        """Bring ``version`` to those sinks that live to the end, each from whoever has the bytes.

        It goes on when a sink dies, or a source whose bytes another has, where :meth:`update` would fail everywhere.
        :attr:`Report.left` names who left. On several source ranks it is called by all, as :meth:`update` is.

        Args:
            version, sinks, progress, before_hold: as those of :meth:`update`.
            ranks: which of ``sinks`` to update, counted from 0; by default all. The others are not touched.

        Returns: what happened, on rank 0; None on the others.

        Raises:
            UpdateAbortedError, TaintedError, StoreError, UsageError, KeyboardInterrupt: as :meth:`update`.
            ConfigError: the sinks or ranks make no sense, or ranks of one engine are chosen and others are not.
        """

        def bring(turn: Turn, clock: PhaseClock) -> Report | None:
            asked = self._whole(version, partial(self._choice.some_of, sinks, ranks), "update_p2p")
            return self._updates.bring(asked, P2PCoordinator, progress, before_hold, clock, turn)

        self._asked.asks(version)
        return self._calls.in_turn(f"update_p2p('{version}')", bring)

    def rollback(self, sinks: Sequence[AnySink] | None = None, before_hold: Callable[[], None] | None = None) -> Report:
        """Have every sink serve the version before again, which it has kept; everywhere or nowhere. No byte moves.

        A sink keeps the version before when the one that it serves was staged (``commit``), until the next one comes,
        or as many as ``keep_previous`` says. Each rollback goes one step back, and forward again where none is left.
        Any process may call it, on one rank.

        Args:
            sinks, before_hold: as those of :meth:`update`.

        Raises:
            UpdateAbortedError: a sink cannot go back, or not to the same version as the others, or it failed; each
                serves what it did.
            TaintedError: as :meth:`update`.
            JoinError: a sink does not answer.
            ConfigError, UsageError, KeyboardInterrupt: as :meth:`update`.
        """

        def go_back(turn: Turn, clock: PhaseClock) -> Report:
            return self._updates.restore(self._choice.all_of(sinks), before_hold, clock, turn)

        return self._calls.in_turn("rollback()", go_back)

    def close(self) -> None:
        """Part from the sinks and free every version. Idempotent.

        Waits until a running call has ended: an update that is broken off may leave sinks tainted. What is staged and
        not committed is dropped. In a child after a fork nothing happens, because all of it is the parent's.

        Raises:
            UsageError: it is called inside another call, as in ``before_hold`` or a signal handler.
        """

        def let_go() -> None:
            self._stager.end(UpdateAbortedError("the server was closed before the commit; it changed nothing"))
            self._here.let_go()
            self._store.close()

        self._call_guard.last(let_go)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and self._call_guard.here:
            self._here.absences.tell("", f"it was closed after {named_reason(error)}")
        self.close()
