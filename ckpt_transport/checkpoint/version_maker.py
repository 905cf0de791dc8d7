"""Makes a version of files or tensors: reads or copies them into a pool, or leaves them where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import replace

import torch

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
from ckpt_transport.checkpoint.progress import OpenProgressReport, ProgressReport
from ckpt_transport.checkpoint.recipe import Recipes
from ckpt_transport.checkpoint.scattered import Loan
from ckpt_transport.checkpoint.shards import TensorPairs, Tensors
from ckpt_transport.checkpoint.stored_version import StoredVersion, extent_of
from ckpt_transport.checkpoint.stream import TensorStream
from ckpt_transport.checkpoint.version_request import VersionRequest
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import Backing, Buffer, no_collections
from ckpt_transport.planning.values.manifest import Conversion, Manifest, PlacedTensor


class VersionMaker:
    """Makes the versions of one rank. What was found out of a version serves the next one that is like it.

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

    def load(self, asked: VersionRequest, files: Sequence[CheckpointFile]) -> StoredVersion:
        """Read this rank's share of files into a pool; where they are cast or joined, copy that into another."""
        if asked.mapping is None:
            return self._read(asked, files)
        let_go = ExitStack()
        read = self._read(replace(asked, release=let_go), files)
        for each in read.manifest.tensors:
            if each.spec.dtype not in dtypes.TORCH:
                raise CheckpointError(
                    f"tensor {each.spec} is of a type that torch has no name for, and cannot be mapped"
                )
        mapped = self._map(asked, read.tensors())
        found = offsets_in(read.buffers[0], mapped.parts) if read.buffers else None
        if found is not None:
            asked.release.push(let_go)
            return self._stored(asked, read.buffers, place(*found), mapped.conversions)
        stored = self._copy(replace(asked, progress=None), mapped)
        let_go.close()
        return stored

    def copy(self, asked: VersionRequest, tensors: Tensors) -> StoredVersion:
        """Copy tensors into a pool."""
        return self._copy(asked, self._map(asked, tensors))

    def copy_loan(self, asked: VersionRequest, loan: Loan) -> StoredVersion:
        """Compute what an adapter makes, and keep it in a pool."""
        if loan.backing is None:
            return self.lend(asked, loan)
        asked = replace(asked, mapping=None)
        report = ProgressReport(asked.progress, loan.backing.nbytes)
        pool = self._take(asked, loan.backing.nbytes)
        copy_computed(loan.backing, loan.tensors, pool, report.add)
        return self._stored(asked, [pool], loan.tensors, loan.conversions, loan.same, loan.replicated)

    def copy_stream(self, asked: VersionRequest, tensors: TensorPairs) -> StoredVersion:
        """Copy tensors into pools that grow as they come."""
        report = OpenProgressReport(asked.progress).add
        mapping = Mapping(()) if asked.mapping is None else asked.mapping
        application = Application(mapping, replicated=asked.replicated)
        stream = TensorStream(
            give=application.one,
            take=lambda nbytes: self._pools.take(nbytes, asked.undo),
            copy=lambda part, arranged, pool: copier.copy([part], arranged, pool, self._threads, report),
        )
        asked.release.callback(self._pools.give_back, stream.pools)
        stream.read(tensors)
        self._check_matched(asked, application)
        if not stream.placed:
            self._check_may_be_empty()
        return self._stored(asked, stream.pools, stream.placed, stream.conversions, replicated=stream.replicated)

    def lend(self, asked: VersionRequest, tensors: Tensors | Loan) -> StoredVersion:
        """Leave tensors where they lie."""
        if isinstance(tensors, Loan):
            loan, asked = tensors, replace(asked, mapping=None)
        else:
            loan = self._borrow(asked, tensors)
        if loan.backing is None:
            self._check_may_be_empty()
        backings = [] if loan.backing is None else [loan.backing]
        return self._stored(asked, backings, loan.tensors, loan.conversions, loan.same, loan.replicated)

    def lends_such(self, values: Sequence[torch.Tensor]) -> bool:
        """Whether tensors of this form were lent last."""
        return self._loans.knows(values)

    def _map(self, asked: VersionRequest, tensors: object) -> MappedTensors:
        if asked.mapping is None:
            return MappedTensors(given(tensors, replicated=asked.replicated), ())
        application, mapped = self._recipes.apply(asked.mapping, tensors, replicated=asked.replicated)
        self._check_matched(asked, application)
        return mapped

    def _borrow(self, asked: VersionRequest, tensors: Tensors) -> Loan:
        def make() -> MappedTensors:
            return self._map(asked, tensors)

        if asked.mapping is not None and asked.mapping.reads_bytes:
            return borrow(*make())
        return self._loans.of(tensors, (asked.replicated, asked.mapping, asked.base), make)

    def _read(self, asked: VersionRequest, files: Sequence[CheckpointFile]) -> StoredVersion:
        wanted = [(file, entry) for file in share(files, self._rank, self._world_size) for entry in file.tensors]
        report = ProgressReport(asked.progress, sum(entry.nbytes for _, entry in wanted))
        if not wanted:
            return self._stored(asked, [], [])
        offsets, pool_nbytes = lay_out(entry.nbytes for _, entry in wanted)
        pool = self._take(asked, pool_nbytes)
        placements = [
            reader.Placement(file, entry, offset) for (file, entry), offset in zip(wanted, offsets, strict=True)
        ]
        reader.read(placements, pool, self._threads, report.add)
        placed = [PlacedTensor(place.entry.spec, 0, place.offset, place.entry.nbytes) for place in placements]
        return self._stored(asked, [pool], placed)

    @no_collections()
    def _copy(self, asked: VersionRequest, mapped: MappedTensors) -> StoredVersion:
        parts, conversions = mapped
        if not parts:
            self._check_may_be_empty()
            return self._stored(asked, [], [])
        arranged = self._arrangements.of(parts)
        report = ProgressReport(asked.progress, sum(arranged.sizes))
        pool = self._take(asked, arranged.nbytes)
        copier.copy(parts, arranged, pool, self._threads, report.add)
        return self._stored(asked, [pool], arranged.placed, conversions, same_names(parts), arranged.replicated)

    def _take(self, asked: VersionRequest, nbytes: int) -> Buffer:
        """A pool, which goes back when the version is let go."""
        pool = self._pools.take(nbytes, asked.undo)
        asked.release.callback(self._pools.give_back, [pool])
        return pool

    def _check_matched(self, asked: VersionRequest, application: Application) -> None:
        """A rule may miss its tensors where other ranks, or the base, have them."""
        if self._world_size == 1 and not asked.base:
            application.check_matched()

    def _check_may_be_empty(self) -> None:
        if self._world_size == 1:
            raise CheckpointError("a version needs at least one tensor, and the mapping of tensors is empty")

    def _stored(
        self,
        asked: VersionRequest,
        backings: Sequence[Backing],
        tensors: Sequence[PlacedTensor],
        conversions: Sequence[Conversion] = (),
        same: tuple[tuple[str, ...], ...] = (),
        replicated: tuple[str, ...] = (),
    ) -> StoredVersion:
        extents = tuple(extent_of(self._rank, backing) for backing in backings)
        manifest = Manifest(
            asked.version,
            extents,
            tuple(tensors),
            conversions=tuple(conversions),
            same=same,
            replicated=replicated,
            mappings=() if asked.mapping is None else (str(asked.mapping),),
        )
        return StoredVersion(manifest, tuple(backings))
