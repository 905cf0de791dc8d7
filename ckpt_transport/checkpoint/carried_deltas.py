"""What differs between two versions is carried where it was found: on a GPU, or in memory of the host that is kept."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack

import torch

from ckpt_transport.checkpoint.borrowing import wait_for_writers
from ckpt_transport.checkpoint.lent_memory import LentMemory
from ckpt_transport.checkpoint.pool import Pools, lay_out
from ckpt_transport.checkpoint.scattered import lent
from ckpt_transport.checkpoint.stored_version import StoredVersion, extent_of
from ckpt_transport.checkpoint.watched import Watching
from ckpt_transport.deltas import Differences, delta_manifest
from ckpt_transport.memory import Backing, Buffer, copy_each

LEAST_BYTES = 1 << 20


class CarriedDeltas:
    """Holds the carriers of one rank.

    Args:
        rank: of this process.
        pools: for carriers only. Those of a version have another size, and would take the place of its base's.
    """

    def __init__(self, rank: int, pools: Pools) -> None:
        self._rank, self._pools = rank, pools
        self._lock = threading.Lock()
        self._closed = False

    def carry(self, stored: StoredVersion, base: str, differences: Differences) -> StoredVersion:
        """Hold what differs between a version and its base, until :meth:`let_go`.

        Args:
            stored: the version.
            base: the name of its base.
            differences: what differs.

        Raises:
            SharedMemoryError: ``/dev/shm`` has no room for it.
        """
        raws = [difference.encoded.raw for difference in differences.found]
        offsets, nbytes = lay_out(raw.numel() for raw in raws)
        devices = {raw.device for raw in raws}
        wait_for_writers(devices)
        if [device.type for device in devices] == ["cuda"]:
            extent = _left_on_gpu(raws, offsets, nbytes)
        else:
            extent = self._copied(raws, offsets, nbytes)
        manifest = delta_manifest(stored.manifest, base, differences, extent_of(self._rank, extent), offsets)
        return StoredVersion(manifest, (extent,), content=stored.content)

    def _copied(self, raws: Sequence[torch.Tensor], offsets: Sequence[int], nbytes: int) -> Buffer:
        with self._lock:
            pool = self._pools.take(_size_class(nbytes), ExitStack())
        places = [pool.tensor[offset : offset + raw.numel()] for raw, offset in zip(raws, offsets, strict=True)]
        if places:
            copy_each(places, raws)
        return pool

    def let_go(self, carried: StoredVersion) -> None:
        """Keep the memory for the next carriers. No endpoint's region may cover it any more."""
        with self._lock:
            if carried.buffers:
                self._pools.give_back(carried.buffers)
            if self._closed:
                self._pools.close()

    def free(self) -> None:
        """Give back what no carriers use."""
        with self._lock:
            self._pools.close()

    def close(self) -> None:
        """The same, now and whenever carriers are let go of. Idempotent."""
        self._closed = True
        self.free()


def _left_on_gpu(raws: Sequence[torch.Tensor], offsets: Sequence[int], nbytes: int) -> Backing:
    """They are sent as tensors are that a trainer lends; nobody else has them, who could change them."""
    nobody = Watching(tuple(map(str, range(len(raws)))), (), ())
    return lent(raws, LentMemory.of(raws, offsets, nbytes), nobody)


def _size_class(nbytes: int) -> int:
    """The size of memory for so many bytes, so that the carriers of the next update mostly fit as well."""
    return max(1 << (nbytes - 1).bit_length(), LEAST_BYTES)
