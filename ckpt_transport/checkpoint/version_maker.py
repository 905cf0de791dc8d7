"""Makes a version of files or tensors: reads or copies them into a pool, or leaves them where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack

from ckpt_transport import dtypes
from ckpt_transport.checkpoint import copier, reader
from ckpt_transport.checkpoint.arrangement import Arrangements
from ckpt_transport.checkpoint.borrowing import borrow
from ckpt_transport.checkpoint.checkpoint import CheckpointFile, share
from ckpt_transport.checkpoint.computed_copy import copy_computed
from ckpt_transport.checkpoint.given_tensor import same_names
from ckpt_transport.checkpoint.loans import Loans
from ckpt_transport.checkpoint.mapping import Application, MappedTensors, Mapping
from ckpt_transport.checkpoint.parts import given
from ckpt_transport.checkpoint.placing import offsets_in, place
from ckpt_transport.checkpoint.pool import Pools, lay_out
from ckpt_transport.checkpoint.progress import OpenProgressReport, Progress, ProgressReport
from ckpt_transport.checkpoint.recipe import Recipes
from ckpt_transport.checkpoint.scattered import Loan
from ckpt_transport.checkpoint.shards import TensorPairs, Tensors
from ckpt_transport.checkpoint.stored_version import StoredVersion, extent_of
from ckpt_transport.checkpoint.stream import TensorStream
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import Backing, no_collections
from ckpt_transport.planning.values.manifest import Conversion, Manifest, PlacedTensor


class VersionMaker:
    """Makes the versions of one rank. What was found out of a version serves the next one that is like it.

    Arguments that methods share: ``undo`` learns how to go back to the state before the call, ``release`` how to let
    the version's memory go. All others are as those of :meth:`~ckpt_transport.checkpoint.store.Store.register`.

    Args:
        rank: of this process.
        world_size: how many ranks share the checkpoints that are read from files.
        pools: where memory comes from.
        threads: read and copy.
    """

    def __init__(self, rank: int, world_size: int, pools: Pools, threads: Executor) -> None:
        self._rank, self._world_size = rank, world_size
        self._pools, self._threads = pools, threads
        self._recipes = Recipes()
        self._arrangements, self._loans = Arrangements(), Loans()

    def load(
        self,
        version: str,
        files: Sequence[CheckpointFile],
        mapping: Mapping | None,
        base: str,
        progress: Progress | None,
        undo: ExitStack,
        release: ExitStack,
    ) -> StoredVersion:
        """Read this rank's share of files into a pool; where they are cast or joined, copy that into another."""
        if mapping is None:
            return self._read(version, files, progress, undo, release)
        let_go = ExitStack()
        read = self._read(version, files, progress, undo, let_go)
        for each in read.manifest.tensors:
            if each.spec.dtype not in dtypes.TORCH:
                raise CheckpointError(
                    f"tensor {each.spec} is of a type that torch has no name for, and cannot be mapped"
                )
        mapped = self._map(read.tensors(), False, mapping, base)
        found = offsets_in(read.buffers[0], mapped.parts) if read.buffers else None
        if found is not None:
            release.push(let_go)
            return self._stored(version, read.buffers, place(*found), mapped.conversions)
        stored = self._copy(version, mapped, None, undo, release)
        let_go.close()
        return stored

    def copy(
        self,
        version: str,
        tensors: Tensors,
        replicated: bool,
        mapping: Mapping | None,
        base: str,
        progress: Progress | None,
        undo: ExitStack,
        release: ExitStack,
    ) -> StoredVersion:
        """Copy tensors into a pool."""
        return self._copy(version, self._map(tensors, replicated, mapping, base), progress, undo, release)

    def copy_loan(
        self, version: str, loan: Loan, progress: Progress | None, undo: ExitStack, release: ExitStack
    ) -> StoredVersion:
        """Compute what an adapter makes, and keep it in a pool."""
        if loan.backing is None:
            return self.lend(version, loan, False, None, "")
        report = ProgressReport(progress, loan.backing.nbytes)
        pool = self._pools.take(loan.backing.nbytes, undo)
        release.callback(self._pools.give_back, [pool])
        copy_computed(loan.backing, loan.tensors, pool, report.add)
        return self._stored(version, [pool], loan.tensors, loan.conversions, loan.same, loan.replicated)

    def copy_stream(
        self,
        version: str,
        tensors: TensorPairs,
        replicated: bool,
        mapping: Mapping | None,
        base: str,
        progress: Progress | None,
        undo: ExitStack,
        release: ExitStack,
    ) -> StoredVersion:
        """Copy tensors into pools that grow as they come."""
        report = OpenProgressReport(progress).add
        application = Application(Mapping(()) if mapping is None else mapping, replicated=replicated)
        stream = TensorStream(
            give=application.one,
            take=lambda nbytes: self._pools.take(nbytes, undo),
            copy=lambda part, arranged, pool: copier.copy([part], arranged, pool, self._threads, report),
        )
        release.callback(self._pools.give_back, stream.pools)
        stream.read(tensors)
        if self._world_size == 1 and not base:
            application.check_matched()
        if not stream.placed:
            self._check_may_be_empty()
        return self._stored(version, stream.pools, stream.placed, stream.conversions, replicated=stream.replicated)

    def lend(
        self, version: str, tensors: Tensors | Loan, replicated: bool, mapping: Mapping | None, base: str
    ) -> StoredVersion:
        """Leave tensors where they lie."""
        loan = tensors if isinstance(tensors, Loan) else self._borrow(tensors, replicated, mapping, base)
        if loan.backing is None:
            self._check_may_be_empty()
        backings = [] if loan.backing is None else [loan.backing]
        return self._stored(version, backings, loan.tensors, loan.conversions, loan.same, loan.replicated)

    def _map(self, tensors: object, replicated: bool, mapping: Mapping | None, base: str) -> MappedTensors:
        if mapping is None:
            return MappedTensors(given(tensors, replicated=replicated), ())
        application, mapped = self._recipes.apply(mapping, tensors, replicated=replicated)
        if self._world_size == 1 and not base:
            application.check_matched()
        return mapped

    def _borrow(self, tensors: Tensors, replicated: bool, mapping: Mapping | None, base: str) -> Loan:
        def make() -> MappedTensors:
            return self._map(tensors, replicated, mapping, base)

        if mapping is not None and mapping.reads_bytes:
            return borrow(*make())
        return self._loans.of(tensors, (replicated, mapping, base), make)

    def _read(
        self,
        version: str,
        files: Sequence[CheckpointFile],
        progress: Progress | None,
        undo: ExitStack,
        release: ExitStack,
    ) -> StoredVersion:
        wanted = [(file, entry) for file in share(files, self._rank, self._world_size) for entry in file.tensors]
        report = ProgressReport(progress, sum(entry.nbytes for _, entry in wanted))
        if not wanted:
            return self._stored(version, [], [])
        offsets, pool_nbytes = lay_out(entry.nbytes for _, entry in wanted)
        pool = self._pools.take(pool_nbytes, undo)
        release.callback(self._pools.give_back, [pool])
        placements = [
            reader.Placement(file, entry, offset) for (file, entry), offset in zip(wanted, offsets, strict=True)
        ]
        reader.read(placements, pool, self._threads, report.add)
        placed = [PlacedTensor(place.entry.spec, 0, place.offset, place.entry.nbytes) for place in placements]
        return self._stored(version, [pool], placed)

    @no_collections()
    def _copy(
        self, version: str, mapped: MappedTensors, progress: Progress | None, undo: ExitStack, release: ExitStack
    ) -> StoredVersion:
        parts, conversions = mapped
        if not parts:
            self._check_may_be_empty()
            return self._stored(version, [], [])
        arranged = self._arrangements.of(parts)
        report = ProgressReport(progress, sum(arranged.sizes))
        pool = self._pools.take(arranged.nbytes, undo)
        release.callback(self._pools.give_back, [pool])
        copier.copy(parts, arranged, pool, self._threads, report.add)
        return self._stored(version, [pool], arranged.placed, conversions, same_names(parts), arranged.replicated)

    def _check_may_be_empty(self) -> None:
        if self._world_size == 1:
            raise CheckpointError("a version needs at least one tensor, and the mapping of tensors is empty")

    def _stored(
        self,
        version: str,
        backings: Sequence[Backing],
        tensors: Sequence[PlacedTensor],
        conversions: Sequence[Conversion] = (),
        same: tuple[tuple[str, ...], ...] = (),
        replicated: tuple[str, ...] = (),
    ) -> StoredVersion:
        extents = tuple(extent_of(self._rank, backing) for backing in backings)
        manifest = Manifest(
            version, extents, tuple(tensors), conversions=tuple(conversions), same=same, replicated=replicated
        )
        return StoredVersion(manifest, tuple(backings))
