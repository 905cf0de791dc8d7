"""A parameter server is the source side: it holds versions and brings them to sinks."""

from __future__ import annotations

import logging
from collections import abc
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

from ckpt_transport.checkpoint import (
    Loan,
    Mapping,
    Store,
    StoredVersion,
    TensorPairs,
    Tensors,
    comes_in_pairs,
    parts_of,
)
from ckpt_transport.config import Config
from ckpt_transport.control import addresses
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import Manifest
from ckpt_transport.rates import kept
from ckpt_transport.service.auto import AUTO, AnyMapping, find_for, what_is_given
from ckpt_transport.service.base import WHOLE, BroughtPart
from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.service.in_thread import in_thread
from ckpt_transport.service.intake import Intake, choose_intake
from ckpt_transport.service.previous import previous_version
from ckpt_transport.service.source_rank import SourceRank
from ckpt_transport.service.subset import check_engines, check_sinks, chosen
from ckpt_transport.service.world import World
from ckpt_transport.update.available import uses_devices
from ckpt_transport.update.coordinator import Coordinator
from ckpt_transport.update.invitations import Invitees
from ckpt_transport.update.p2p_coordinator import P2PCoordinator
from ckpt_transport.update.phases import PhaseClock
from ckpt_transport.update.progress import Progress
from ckpt_transport.update.report import Report
from ckpt_transport.update.restore import RestoreCoordinator

logger = logging.getLogger(__name__)
Call = ParamSpec("Call")
Result = TypeVar("Result")


class ParameterServer:
    """A parameter server is one source rank. All ranks make the same calls in the same order.

    Any thread may call. ``update``, ``unregister`` and ``close`` are served one after the other: a call waits until the
    one that runs has ended, for at most ``update_timeout``. ``register`` and ``lend`` do not wait for an update, only
    for each other. A child after a fork makes a server of its own; it is refused here.

    Args:
        config: settings; by default from the environment.
        rank, world_size: of this source among the sources; by default ``RANK`` and ``WORLD_SIZE`` as torchrun sets
            them, else 0 of 1.

    Ranks above 0 find rank 0 at ``config.coordinator``, or through the store at ``MASTER_ADDR`` and ``MASTER_PORT``
    when that is empty. Rank 0 waits for them for ``join_timeout``, and they for rank 0 for ``update_timeout``. A rank
    whose ``register`` fails, or that an error ends, tells the others, who do not wait then.

    Raises:
        ConfigError: the rank is not one of the world, or several sources could not find each other.
    """

    def __init__(self, config: Config | None = None, *, rank: int | None = None, world_size: int | None = None) -> None:
        self._call_guard = CallGuard("ParameterServer")
        self.config = config if config is not None else Config.load()
        self._world = World.find(rank, world_size)
        self.rank, self.world_size = self._world.rank, self._world.size
        self._store = Store(
            rank=self.rank,
            world_size=self.world_size,
            pool=MemoryKind(self.config.pool),
            threads=self.config.read_threads or None,
            pinned=uses_devices(self.config),
        )
        self._here = SourceRank(self._world, self.config)

    # -- versions -----------------------------------------------------------------------------------------------

    def register(
        self,
        version: str,
        *,
        files: Sequence[Path] | None = None,
        directory: Path | None = None,
        tensors: Tensors | TensorPairs | None = None,
        replicated: bool = False,
        mapping: AnyMapping = None,
        base: str = "",
        progress: Progress | None = None,
    ) -> StoredVersion:
        """Take a version in; exactly one of ``files``, ``directory`` and ``tensors``.

        With several source ranks, the ranks share out ``files`` and ``directory``; ``tensors`` are this rank's own, and
        may be none. All ranks together must give every byte of every tensor.

        Args:
            version: its name.
            files: safetensors files.
            directory: a checkpoint as Hugging Face lays it out. Where its index and its files, or two files, do not go
                together, it is refused.
            tensors: by name, on any devices, as ``state_dict()`` returns them. DTensors (FSDP2, tensor parallel) are
                taken as they are: every rank of their mesh gives its part, and nothing is gathered. Other parts are
                given as :class:`~ckpt_transport.TensorShard`. What is no tensor under ``_extra_state`` is left out.
                An iterable of pairs of name and tensor serves frameworks that gather layer by layer: each is copied
                before the next is asked for, and not kept. It must not call this server.
            replicated: other ranks give plain tensors of the same names with equal elements, and one of them sends
                each. Beside DTensors plain tensors are taken for such.
            mapping: rules by which the trainer's names, types and shapes become the engines'. A rule that matches no
                tensor is an error where there is one source, unless it is optional. With ``"auto"`` names, types and
                shapes are compared with what the sinks of the configuration expect, and the rules found are logged;
                where no sink says it, well-known prefixes are taken off. All ranks must know the sinks then.
            base: what sinks must serve, where these tensors are only those that differ from it.
            progress: told how far it is.

        Raises:
            CheckpointError: the files or tensors are not what they claim to be.
            SharedMemoryError: ``/dev/shm`` is too small.
            StoreError: there is a version of that name already.
            UsageError: the server was closed, or another process made it. All other calls raise it, too.
        """
        self._call_guard.check()
        with self._here.telling_absence(version):
            if mapping == AUTO:
                mapping = find_for(what_is_given(files, directory, tensors), self.config.sinks, self.config)
            return self._store.register(
                version,
                files=files,
                directory=directory,
                tensors=tensors,
                replicated=replicated,
                mapping=mapping,
                base=base,
                progress=progress,
            )

    def lend(
        self,
        version: str,
        tensors: Tensors | Loan,
        *,
        replicated: bool = False,
        mapping: AnyMapping = None,
        base: str = "",
    ) -> StoredVersion:
        """Take a version in where it lies, as on the GPU of a trainer beside the engine: nothing is copied beforehand.

        Buckets are gathered from ``tensors`` when they are sent. Nobody may change them until the version is
        unregistered. An update looks before and after it sends them, and fails where torch has counted a write, or
        where some bytes that it compares differ; it does not see single elements that are written past torch, as
        through ``tensor.data`` or NumPy.

        Args:
            version: its name.
            tensors: as those of :meth:`register`, and contiguous; or what an adapter makes of them, as
                ``ckpt_transport_fp8.quantized``.
            replicated, mapping, base: as those of :meth:`register`; what is cast is cast when it is sent, where it
                lies. What an adapter makes is not mapped any more.

        Raises:
            CheckpointError: a tensor is not contiguous, or nothing that safetensors could hold; names it.
            StoreError: there is a version of that name already.
        """
        self._call_guard.check()
        with self._here.telling_absence(version):
            if mapping == AUTO:
                mapping = find_for(what_is_given(tensors=tensors), self.config.sinks, self.config)
            return self._store.lend(version, tensors, replicated=replicated, mapping=mapping, base=base)

    def unregister(self, version: str) -> None:
        """Let a version go; its memory is reused by the next version of the same size. Waits for a running update."""
        with self._call_guard.one(f"unregister('{version}')", self.config.update_timeout):
            self._here.forget(self._store.get(version).extents)
            self._store.unregister(version)

    # -- updates ------------------------------------------------------------------------------------------------

    def update(
        self,
        version: str,
        sinks: Sequence[str] | None = None,
        progress: Progress | None = None,
        before_hold: Callable[[], None] | None = None,
        *,
        only: Collection[str] | None = None,
        base: str = "",
    ) -> Report | None:
        """Bring ``version`` to every sink, everywhere or nowhere.

        Args:
            version: a registered one.
            sinks: addresses; by default those of the configuration. Only rank 0 needs to know them.
            progress: told about the bytes this rank has sent. Its first error is logged, and it is not told any more.
            before_hold: called on rank 0 when all is ready and only forward passes must still be held; for those who
                pause an engine by other means. What it raises aborts the update.
            only: names of the tensors to bring; the others are as in the base. All ranks say the same.
            base: what all sinks must serve, where not all tensors are brought: by default what the version was
                registered with, else what this server has brought to them last.

        Returns: what happened, on rank 0; None on the others.

        Raises:
            UpdateAbortedError: it failed and every sink still serves its old version.
            TaintedError: it failed half-way; names the sinks that must not serve.
            StoreError: there is no such version.
            ConfigError: the sinks make no sense.
            UsageError: another call has not ended within ``update_timeout``, or is one that this thread is in.
            KeyboardInterrupt: and what else interrupts; its ``__cause__`` is one of the first two, or None when every
                sink serves the new version.
        """
        with PhaseClock() as clock, self._call_guard.one(f"update('{version}')", self.config.update_timeout):
            part = BroughtPart(only, base)
            return self._update(version, lambda: self._all_of(sinks), Coordinator, progress, before_hold, clock, part)

    def publish(
        self,
        version: str,
        tensors: Tensors | TensorPairs,
        sinks: Sequence[str] | None = None,
        progress: Progress | None = None,
        before_hold: Callable[[], None] | None = None,
        *,
        replicated: bool = False,
        mapping: AnyMapping = None,
        base: str = "",
    ) -> Report | None:
        """Bring a step's weights to every sink: take them in, update, and let them go, whether that succeeds or not.

        This is what a training loop calls. Tensors are lent, or copied into the pool of the step before, whichever ends
        sooner by the cost model; :attr:`Report.intake` says which and why. When it returns, they may be changed.

        Args:
            version: a name that no version has here.
            tensors, replicated, mapping, base: this rank's, as those of :meth:`register`; ``"auto"`` asks ``sinks``.
            sinks, progress, before_hold: as those of :meth:`update`.

        Returns: as :meth:`update`; the phases begin with ``register`` and end with ``unregister``.

        Raises: as :meth:`register` or :meth:`lend`, and :meth:`update`.
        """
        with PhaseClock("register") as clock:
            if mapping == AUTO:
                asked = self.config.sinks if sinks is None else sinks
                with self._here.telling_absence(version):
                    mapping = find_for(what_is_given(tensors=tensors), asked, self.config)
            intake = self._intake(tensors, mapping, self.config.sinks if sinks is None else sinks)
            if intake.lend:
                assert not comes_in_pairs(tensors), "what comes in pairs is registered"
                self.lend(version, tensors, replicated=replicated, mapping=mapping, base=base)
            else:
                self.register(version, tensors=tensors, replicated=replicated, mapping=mapping, base=base)
            try:
                clock.enter("begin")
                with self._call_guard.one(f"publish('{version}')", self.config.update_timeout):
                    report = self._update(
                        version, lambda: self._all_of(sinks), Coordinator, progress, before_hold, clock
                    )
                return None if report is None else replace(report, intake=intake.why)
            finally:
                clock.enter("unregister")
                self.unregister(version)

    def _intake(self, tensors: Tensors | TensorPairs, mapping: Mapping | None, sinks: Sequence[str]) -> Intake:
        """How a step's weights are taken in. What is wrong with them is said by whoever does that."""
        if comes_in_pairs(tensors):
            return Intake(lend=False, why="registered, because its tensors come one by one")
        if mapping is not None and mapping.cuts_columns:
            return Intake(lend=False, why="registered, because columns of tensors are no runs of memory to be lent")
        values = tensors.values() if isinstance(tensors, abc.Mapping) else ()
        parts = [part for value in values for part in parts_of(value)]
        return choose_intake(parts, near=all(map(addresses.stays_on_host, sinks)), rates=kept())

    async def awaiting(self, call: Callable[Call, Result], *args: Call.args, **kwargs: Call.kwargs) -> Result:
        """Await a call of this server, as ``await server.awaiting(server.publish, "step-42", tensors)``.

        It runs in a thread of its own, and the event loop goes on. Where the task is cancelled, the update ends as by
        an interrupt, before this returns: everywhere or nowhere.
        """
        return await in_thread(partial(call, *args, **kwargs), self._here.interrupt, self._here.forget_interrupt)

    def update_p2p(
        self,
        version: str,
        sinks: Sequence[str] | None = None,
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
        with PhaseClock() as clock, self._call_guard.one(f"update_p2p('{version}')", self.config.update_timeout):
            return self._update(
                version, lambda: self._some_of(sinks, ranks), P2PCoordinator, progress, before_hold, clock
            )

    def rollback(self, sinks: Sequence[str] | None = None, before_hold: Callable[[], None] | None = None) -> Report:
        """Have every sink serve the version before again, which it has kept; everywhere or nowhere. No byte moves.

        A sink keeps the version before when the one that it serves was staged (``commit``, ``keep_previous``), until
        the next one comes. A second rollback goes forward again. Any process may call it, on one rank.

        Args:
            sinks, before_hold: as those of :meth:`update`.

        Raises:
            UpdateAbortedError: a sink cannot go back, or not to the same version as the others, or it failed; each
                serves what it did.
            TaintedError: as :meth:`update`.
            JoinError: a sink does not answer.
            ConfigError, UsageError, KeyboardInterrupt: as :meth:`update`.
        """
        with PhaseClock() as clock, self._call_guard.one("rollback()", self.config.update_timeout):
            invited = self._all_of(sinks)
            manifest = Manifest(previous_version(invited, self.config), (), ())
            stored = StoredVersion(manifest, ())
            return self._here.lead(stored, Invitees(1, invited), RestoreCoordinator, None, before_hold, clock)

    def _all_of(self, sinks: Sequence[str] | None) -> tuple[str, ...]:
        everybody = self.config.sinks if sinks is None else tuple(sinks)
        check_sinks(everybody)
        return everybody

    def _some_of(self, sinks: Sequence[str] | None, ranks: Sequence[int] | None) -> tuple[str, ...]:
        everybody = self._all_of(sinks)
        some = everybody if ranks is None else chosen(everybody, ranks)
        if len(some) < len(everybody):
            check_engines(everybody, some, self.config)
        return some

    def _update(
        self,
        version: str,
        choose: Callable[[], tuple[str, ...]],
        leader: type[Coordinator],
        progress: Progress | None,
        before_hold: Callable[[], None] | None,
        clock: PhaseClock,
        part: BroughtPart = WHOLE,
    ) -> Report | None:
        if self.rank > 0:
            self._here.follow(part.of(self._store.get(version), alone=False))
            return None
        with self._here.leading(version) as announce:
            stored, invited = part.of(self._store.get(version), alone=self.world_size == 1), choose()
            base = part.base_for(stored, self._here.brought, invited)
            invitees = replace(
                self._here.invitees(version, invited), base=base, base_updates=self._here.brought.updates(base, invited)
            )
            return self._here.lead(stored, invitees, leader, progress, before_hold, clock, announce)

    # -- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Part from the sinks and free every version. Idempotent.

        Waits until a running call has ended: an update that is broken off may leave sinks tainted. In a child after a
        fork nothing happens, because all of it is the parent's.

        Raises:
            UsageError: it is called inside another call, as in ``before_hold`` or a signal handler.
        """
        with self._call_guard.last() as mine:
            if mine:
                self._here.let_go()
                self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and self._call_guard.here:
            self._here.tell_absence("", f"it was closed after {type(error).__name__}: {error}")
        self.close()
