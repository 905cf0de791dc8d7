"""The versions that a server holds: how they are taken in, and let go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from ckpt_transport.checkpoint import Lease, Loan, Mapping, Store, StoredVersion, TensorPairs, Tensors, comes_in_pairs
from ckpt_transport.config import Config
from ckpt_transport.memory import MemoryKind
from ckpt_transport.service.auto import AnyMapping, find_for, in_words, resolved, what_is_given
from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.service.intake import Intake
from ckpt_transport.service.sink_handles import AnySink, locate
from ckpt_transport.service.source_rank import SourceRank
from ckpt_transport.service.world import World
from ckpt_transport.update.available import uses_devices
from ckpt_transport.update.progress import Progress

Result = TypeVar("Result")


def store_of(world: World, config: Config) -> Store:
    """Make the store of one source rank, as settings want its memory."""
    return Store(
        rank=world.rank,
        world_size=world.size,
        pool=None if config.pool == "auto" else MemoryKind(config.pool),
        threads=config.read_threads or None,
        pinned=uses_devices(config),
    )


class ServerVersions:
    """Takes versions in on one source rank, so that other ranks hear when it fails, and an interrupt leaves no name.

    Args:
        store: holds them.
        here: this rank.
        guard: of the server.
        config: settings.
    """

    def __init__(self, store: Store, here: SourceRank, guard: CallGuard, config: Config) -> None:
        self._store, self._here, self._guard, self._config = store, here, guard, config
        self._mappings: dict[str, str] = {}
        """What was said of the mapping of each version."""

    def register(
        self,
        version: str,
        files: Sequence[Path] | None,
        directory: Path | None,
        tensors: Tensors | TensorPairs | Loan | None,
        progress: Progress | None,
        *,
        replicated: bool,
        mapping: AnyMapping,
        base: str,
    ) -> StoredVersion:
        """See :meth:`ParameterServer.register`."""

        self._mappings[version] = in_words(mapping)

        def take_in(lease: Lease) -> StoredVersion:
            def find() -> Mapping:
                return find_for(what_is_given(files, directory, tensors), self._config.sinks, self._config)

            return self._store.register(
                version,
                files=files,
                directory=directory,
                tensors=tensors,
                replicated=replicated,
                mapping=resolved(mapping, find),
                base=base,
                progress=progress,
                lease=lease,
            )

        return self._take_in(version, take_in)

    def lend(
        self, version: str, tensors: Tensors | Loan, *, replicated: bool, mapping: AnyMapping, base: str
    ) -> StoredVersion:
        """See :meth:`ParameterServer.lend`."""

        self._mappings[version] = in_words(mapping)

        def take_in(lease: Lease) -> StoredVersion:
            def find() -> Mapping:
                return find_for(what_is_given(tensors=tensors), self._config.sinks, self._config)

            found = resolved(mapping, find)
            return self._store.lend(version, tensors, replicated=replicated, mapping=found, base=base, lease=lease)

        return self._take_in(version, take_in)

    def mapping_for(
        self, version: str, mapping: AnyMapping, tensors: object, sinks: Callable[[], Sequence[AnySink]]
    ) -> Mapping | None:
        """The rules for what is published; raises as :func:`resolved` and :func:`find_for`.

        Args:
            version, mapping, tensors: as those of :meth:`ParameterServer.publish`.
            sinks: tells the sinks that are asked what they expect, where rules are to be found out.
        """

        def find() -> Mapping:
            return find_for(what_is_given(tensors=tensors), locate(sinks(), self._config).addresses, self._config)

        found = self._here.absences.telling(version, lambda: resolved(mapping, find))
        self._mappings[version] = in_words(mapping)
        return found

    def mapping_of(self, version: str) -> str:
        """The mapping with which a version is taken in, in words."""
        return self._mappings.get(version, "")

    def lends_such(self, values: Sequence[torch.Tensor]) -> bool:
        """See :meth:`Store.lends_such`."""
        return self._store.lends_such(values)

    def take_in_published(
        self,
        version: str,
        tensors: Tensors | TensorPairs | Loan,
        intake: Intake,
        lease: Lease,
        *,
        replicated: bool,
        mapping: Mapping | None,
        base: str,
    ) -> StoredVersion:
        """Take in what is published, until its lease is over.

        Args:
            version, tensors, replicated, base: as those of :meth:`ParameterServer.publish`.
            intake: how.
            lease: its owner says when it is over.
            mapping: rules; None for none.
        """

        if not intake.lend:
            take = partial(self._store.register, version, tensors=tensors)
        else:
            assert not comes_in_pairs(tensors), "what comes in pairs is registered"
            take = partial(self._store.lend, version, tensors)
        return take(replicated=replicated, mapping=mapping, base=base, lease=lease)

    def telling(self, version: str, act: Callable[[], Result]) -> Result:
        """Do something for a version; where it fails, other ranks hear why this one does not come."""
        self._guard.check()
        return self._here.absences.telling(version, act)

    def check_free(self, version: str) -> None:
        """
        Raises:
            StoreError: a version cannot have this name, or one has it already. Other ranks hear so.
        """
        self.telling(version, partial(self._store.check_free, version))

    def keeps(self, stored: StoredVersion) -> bool:
        """Whether it is the one that the next version is compared with."""
        return self._store.kept is stored

    def let_go(self, version: str, timeout: float) -> None:
        """Forget a version when the call that runs, and may use it, has ended within so many seconds."""

        def forget() -> None:
            self._here.forget(self._store.get(version).extents)
            self._store.unregister(version)
            self._mappings.pop(version, None)

        self._guard.one(f"unregister('{version}')", timeout, forget)

    def _take_in(self, version: str, act: Callable[[Lease], StoredVersion]) -> StoredVersion:
        """Take a version in by ``act``; where that ends by an error, or an interrupt, it is not there."""
        self._guard.check()
        lease = Lease()
        try:
            return self._here.absences.telling(version, partial(act, lease))
        except BaseException:
            lease.over = True
            raise
