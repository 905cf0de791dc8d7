"""A store holds registered versions: weights in memory that transports can send from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ckpt_transport.checkpoint.carried_deltas import CarriedDeltas
from ckpt_transport.checkpoint.checkpoint import from_files
from ckpt_transport.checkpoint.computed_copy import copy_computed
from ckpt_transport.checkpoint.directory import from_directory
from ckpt_transport.checkpoint.mapping import Mapping
from ckpt_transport.checkpoint.pool import Pools
from ckpt_transport.checkpoint.progress import Progress
from ckpt_transport.checkpoint.scattered import Loan
from ckpt_transport.checkpoint.shards import TensorPairs, Tensors, comes_in_pairs
from ckpt_transport.checkpoint.stored_version import StoredVersion
from ckpt_transport.checkpoint.version_maker import VersionMaker
from ckpt_transport.checkpoint.version_request import VersionRequest
from ckpt_transport.errors import CheckpointError, ConfigError, StoreError
from ckpt_transport.memory import (
    Buffer,
    MemoryKind,
    compile_kernels,
    free_on_host,
    no_collections,
    sweep_leftovers,
    usable_cores,
)
from ckpt_transport.memory.segment import SHM
from ckpt_transport.paths import path_of, paths_of

LONGEST_NAME = 1000
"""Characters of a version's name, which messages, logs and tables repeat."""


class Lease:
    """Says for how long a version is held that was taken in for one call.

    Attributes:
        over: the version is there no more, and its memory goes to whoever asks the store for memory next. It is set by
            an assignment, which no interrupt splits; so what it guards needs no clearing up that could be interrupted.
    """

    def __init__(self) -> None:
        self.over = False


@dataclass(frozen=True, slots=True)
class _Held:
    stored: StoredVersion
    release: ExitStack
    lease: Lease
    copies: tuple[Buffer, ...] = ()
    """Its memory, where that is of no pool, and the next copy may have it."""


class Store:
    """Holds the versions of one rank.

    Tensors of files and of memory are copied into one pool per version, each at a multiple of 256 bytes, in the order
    of files (by name) and bytes, or in that of the mapping. Files are copied wherever they lie, in ``/dev/shm`` too, so
    that nobody who changes or shortens one changes a version.

    The pool of an unregistered version is kept and reused by the next version of exactly its size. Methods may be
    called from any thread; registering one version waits for another that is being registered.
    """

    def __init__(
        self,
        *,
        rank: int = 0,
        world_size: int = 1,
        pool: MemoryKind | None = MemoryKind.SHARED,
        threads: int | None = None,
        pinned: bool = False,
    ) -> None:
        """Make an empty store; with a shared pool, remove what dead processes of this user left in ``/dev/shm``.

        Args:
            rank: of this process.
            world_size: how many ranks share the checkpoints that are registered from files.
            pool: ``SHARED`` or ``PRIVATE`` host memory; None for shared where ``/dev/shm`` has room, else private.
            threads: how many read and copy at once; by default one per processor that may be used, at most 16.
            pinned: page-lock registered memory, so that GPUs read it at full speed.

        Raises:
            ConfigError: an argument is out of range.
        """
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank} and must be at least 0 and less than world_size, which is {world_size}")
        if pool not in (MemoryKind.SHARED, MemoryKind.PRIVATE, None):
            raise ConfigError(f"pool is '{pool}' and must be 'shared' or 'private'")
        if threads is None:
            threads = usable_cores()
        if threads < 1:
            raise ConfigError(f"threads is {threads} and must be at least 1")
        self._kept: _Held | None = None
        self._versions: dict[str, _Held] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="ckpt-transport-store")
        self._pools = Pools(pool, pinned=pinned, threads=self._executor)
        self._maker = VersionMaker(rank, world_size, self._pools, self._executor)
        self.carriers = CarriedDeltas(rank, Pools(pool, pinned=pinned, threads=self._executor))
        if pool is not MemoryKind.PRIVATE and SHM.is_dir():
            sweep_leftovers()

    def register(
        self,
        version: str,
        *,
        files: Sequence[Path] | None = None,
        directory: Path | None = None,
        tensors: Tensors | TensorPairs | Loan | None = None,
        replicated: bool = False,
        mapping: Mapping | None = None,
        base: str = "",
        progress: Progress | None = None,
        lease: Lease | None = None,
    ) -> StoredVersion:
        """Load a version. Exactly one of ``files``, ``directory`` and ``tensors`` says from where.

        Args:
            version: its name, which must be new.
            files: safetensors files, shared out among the ranks of the world.
            directory: a Hugging Face checkpoint, shared out among the ranks of the world; see
                :func:`~ckpt_transport.checkpoint.directory.from_directory` for the files it consists of.
            tensors: this rank's own, any device, contiguous or not; whole or in parts, see
                :func:`~ckpt_transport.checkpoint.parts.given`. They are copied; two names of one tensor are two
                copies. Of pairs of name and tensor, as a generator yields them, each is copied before the next is asked
                for, and not kept. It must not call the store. What an adapter makes is computed now, and not mapped.
            replicated: other ranks give plain tensors of the same names with equal elements; one rank sends each.
            mapping: what becomes of names, types and shapes. Where files are cast or joined, they and what becomes of
                them both have memory meanwhile.
            base: the version that has the other tensors, where these are not all. Rules need not match then.
            progress: told how far it is; of pairs all that have come are all there are. What it raises ends the
                registration. It must not call the store.
            lease: ends the version, besides :meth:`unregister`.

        Returns:
            This rank's part, which has no extents when the world is larger than the checkpoint has tensors.

        Raises:
            CheckpointError: a file, an index or a tensor is not what it claims to be.
            SharedMemoryError: ``/dev/shm`` is missing or too small.
            StoreError: the name is taken, the store is closed, or not exactly one source is given.
                After any error the store is as it was, but for a free pool of another size, which is gone.
        """
        if sum(source is not None for source in (files, directory, tensors)) != 1:
            raise StoreError("give exactly one of files, directory and tensors")
        with self._lock:
            self._check_free(version)
            with ExitStack() as undo:
                release = ExitStack()
                asked = VersionRequest(version, replicated, mapping, base, progress, undo, release)
                if isinstance(tensors, Loan):
                    stored = self._maker.copy_loan(asked, tensors)
                elif tensors is not None and comes_in_pairs(tensors):
                    stored = self._maker.copy_stream(asked, tensors)
                elif tensors is not None:
                    stored = self._maker.copy(asked, tensors)
                else:
                    found = (
                        from_directory(path_of(directory, CheckpointError))
                        if directory is not None
                        else from_files(paths_of(files, CheckpointError))
                    )
                    stored = self._maker.load(asked, found)
                undo.pop_all()
            self._pools.close()
            stored = replace(stored, base=base)
            self._versions[version] = _Held(stored, release, lease or Lease())
            return stored

    def lend(
        self,
        version: str,
        tensors: Tensors | Loan,
        *,
        replicated: bool = False,
        mapping: Mapping | None = None,
        base: str = "",
        lease: Lease | None = None,
    ) -> StoredVersion:
        """Hold a version that stays where it is: nothing is copied, and nobody may change ``tensors`` meanwhile.

        Kernels that read it on a GPU are compiled when the first one there is lent.

        Changes are noticed as far as :class:`~ckpt_transport.checkpoint.watched.Watched` sees them.

        Args:
            version: its name, which must be new.
            tensors: as those of :meth:`register`, and contiguous. What is enqueued on the current streams of their
                devices has ended when this returns. Or what an adapter makes of them.
            replicated, mapping, base: as those of :meth:`register`. What is cast is cast when it is sent. What an
                adapter makes is not mapped any more.
            lease: as that of :meth:`register`.

        Raises:
            CheckpointError: a tensor is not contiguous, or nothing that safetensors could hold.
            StoreError: the name is taken, or the store is closed.
        """
        with self._lock, no_collections():
            self._check_free(version)
            stored = self._maker.lend(VersionRequest(version, replicated, mapping, base), tensors)
            stored = replace(stored, base=base)
            if stored.made_on is not None:
                compile_kernels(stored.made_on)
            self._versions[version] = _Held(stored, ExitStack(), lease or Lease())
            return stored

    def lends_such(self, values: Sequence[torch.Tensor]) -> bool:
        """Whether tensors of this form were lent last, so that it need not be found out whether these can be."""
        return self._maker.lends_such(values)

    def check_free(self, version: str) -> None:
        """
        Raises:
            StoreError: a version cannot have this name, one has it already, or the store is closed.
        """
        with self._lock:
            self._check_free(version)

    def get(self, version: str) -> StoredVersion:
        """The version of that name.

        Raises:
            StoreError: there is none; lists those there are.
        """
        return self._held(version).stored

    def unregister(self, version: str) -> None:
        """Forget a version. Its pool is kept for the next version of the same size.

        No endpoint's region may cover its memory any more.

        Raises:
            StoreError: there is none of that name; lists those there are.
        """
        with self._lock:
            held = self._held(version)
            del self._versions[version]
            held.release.close()

    def keep(self, version: str) -> None:
        """Forget the name of a version and keep its memory, until the next one is kept or :meth:`let_go_of_kept`.

        Raises: as :meth:`unregister`.
        """
        with self._lock:
            held = self._held(version)
            self._let_go_of_kept()
            self._kept = held
            del self._versions[version]

    def keep_copy(self, version: str, device: torch.device) -> StoredVersion:
        """Copy a version that lies, or is made, on one device, and keep the copy there as :meth:`keep` does.

        The copy that was kept before is overwritten where it lies alike. The version keeps its name.

        Returns: the copy, whose content is that of the version.

        Raises:
            StoreError: there is none of that name; lists those there are.
            CheckpointError: somebody was seen to change what the bytes are made of. Nothing is kept then.
            torch.OutOfMemoryError, MemoryError: the device, or the host, has no room for it. The same.
        """
        with self._lock:
            stored = self._held(version).stored
            buffers = self._kept.copies if self._kept is not None else ()
            self._let_go_of_kept()
            if not _have_room(buffers, stored, device):
                del buffers
                buffers = _made_for(stored, device)
            for number, (extent, buffer) in enumerate(zip(stored.extents, buffers, strict=True)):
                placed = [tensor for tensor in stored.manifest.tensors if tensor.extent == number]
                copy_computed(extent, placed, buffer, lambda _: None)
            kept = StoredVersion(stored.manifest, buffers, content=stored.content)
            self._kept = _Held(kept, ExitStack(), Lease(), buffers)
            return kept

    def let_go_of_kept(self) -> None:
        """Release the memory of the version that is kept, as :meth:`unregister` does. Idempotent."""
        with self._lock:
            self._let_go_of_kept()

    def _let_go_of_kept(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.release.close()

    @property
    def kept(self) -> StoredVersion | None:
        """The version that is kept without a name."""
        return None if self._kept is None else self._kept.stored

    def with_content(self, content: object) -> StoredVersion | None:
        """The version that has these bytes, if it is registered or kept."""
        everything = [*self._versions.values(), *filter(None, [self._kept])]
        return next((held.stored for held in everything if held.stored.content is content), None)

    def close(self) -> None:
        """Release all versions and the free pool. Idempotent."""
        with self._lock:
            self._closed = True
            self._let_go_of_kept()
            while self._versions:
                self._versions.popitem()[1].release.close()
            self._pools.close()
            self.carriers.close()
            self._executor.shutdown()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_free(self, version: str) -> None:
        if self._closed:
            raise StoreError("this store was closed")
        if not isinstance(version, str) or not version or not version.isprintable():
            raise StoreError(f"a version cannot be called {version!r}; give a name of printable characters")
        if len(version) > LONGEST_NAME:
            raise StoreError(
                f"a version cannot be called {version[:20]!r}..., which has {len(version):,} characters; give a name "
                f"of at most {LONGEST_NAME:,}"
            )
        for name in [name for name, held in self._versions.items() if held.lease.over]:
            if (held := self._versions.pop(name)) is not self._kept:
                held.release.close()
        if version in self._versions:
            raise StoreError(f"version '{version}' is registered already; unregister it, or choose another name")

    def _held(self, version: str) -> _Held:
        held = self._versions.get(version)
        if held is None or held.lease.over:
            names = ", ".join(f"'{name}'" for name, held in self._versions.items() if not held.lease.over) or "none"
            raise StoreError(f"no version '{version}' is registered; registered: {names}")
        return held


def _have_room(buffers: Sequence[Buffer], stored: StoredVersion, device: torch.device) -> bool:
    """Whether these are memory for a copy of a version on that device."""
    places = [(buffer.nbytes, buffer.tensor.device) for buffer in buffers]
    return places == [(extent.nbytes, device) for extent in stored.extents]


def _made_for(stored: StoredVersion, device: torch.device) -> tuple[Buffer, ...]:
    nbytes = sum(extent.nbytes for extent in stored.extents)
    if device.type == "cpu" and (free := free_on_host()) < nbytes:
        raise MemoryError(f"a copy takes {nbytes:,} bytes, and the host has {free:,} bytes free")
    with torch.inference_mode(mode=False):  # else it could be written to in that mode only
        return tuple(Buffer(torch.zeros(extent.nbytes, dtype=torch.uint8, device=device)) for extent in stored.extents)
