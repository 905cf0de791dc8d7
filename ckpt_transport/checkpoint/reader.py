"""A reader brings tensors from files into a pool, in parallel."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from ckpt_transport.checkpoint import tasks
from ckpt_transport.checkpoint.checkpoint import CheckpointFile
from ckpt_transport.checkpoint.header import TensorEntry
from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import Buffer

CHUNK_NBYTES = 4 << 20
"""What one thread reads at a time: long enough to hide the cost of a call, short enough to share the work evenly."""
_MAX_TARGETS = os.sysconf("SC_IOV_MAX")


@dataclass(frozen=True, slots=True)
class Placement:
    """Says where a tensor of a file goes.

    Attributes:
        file: where it is.
        entry: which one.
        offset: of its first byte in the pool.
    """

    file: CheckpointFile
    entry: TensorEntry
    offset: int


@dataclass(slots=True)
class Chunk:
    """A chunk is a contiguous range of bytes of one file, with the pieces of the pool that it is scattered to.

    Attributes:
        file: to read from.
        start: of the run, in the file.
        nbytes: its length.
        targets: (offset in the pool, length) in bytes, in the order of the run.
    """

    file: CheckpointFile
    start: int
    nbytes: int = 0
    targets: list[tuple[int, int]] = field(default_factory=list)

    def takes(self, file: CheckpointFile, start: int) -> bool:
        """Whether bytes of ``file`` from ``start`` on continue this run, and it has room."""
        return (
            self.file is file
            and self.start + self.nbytes == start
            and self.nbytes < CHUNK_NBYTES
            and len(self.targets) < _MAX_TARGETS
        )

    def add(self, offset: int, nbytes: int) -> int:
        """Let the run go on for at most ``nbytes``, to ``offset`` in the pool. Returns how many it takes."""
        taken = min(nbytes, CHUNK_NBYTES - self.nbytes)
        self.targets.append((offset, taken))
        self.nbytes += taken
        return taken


def read(placements: Sequence[Placement], pool: Buffer, executor: Executor, report: Callable[[int], None]) -> None:
    """Fill ``pool`` from the files. When it returns or raises, no thread writes to the pool any more.

    Args:
        placements: what to read and where to, in the order of files and bytes.
        pool: where to.
        executor: does the reading.
        report: called in the caller's thread with the bytes of each chunk, when it is there.

    Raises:
        CheckpointError: a file cannot be read, is shorter than its header says, or changes meanwhile.
        SharedMemoryError: ``/dev/shm`` is full.
    """
    with ExitStack() as opened:
        descriptors: dict[int, int] = {}
        for placement in placements:
            if id(placement.file) not in descriptors:
                descriptors[id(placement.file)] = opened.enter_context(placement.file.opened())
        tasks.run(
            [partial(_read_chunk, descriptors[id(chunk.file)], chunk, pool) for chunk in cut_chunks(placements)],
            executor,
            report,
        )


def cut_chunks(placements: Iterable[Placement]) -> Iterator[Chunk]:
    """Cut ranges of at most 4 MiB that together cover every byte of the placements once. None is empty."""
    chunk: Chunk | None = None
    for placement in placements:
        done = 0
        while done < placement.entry.nbytes:
            start = placement.entry.offset + done
            if chunk is None or not chunk.takes(placement.file, start):
                if chunk is not None:
                    yield chunk
                chunk = Chunk(placement.file, start)
            done += chunk.add(placement.offset + done, placement.entry.nbytes - done)
    if chunk is not None:
        yield chunk


def _read_chunk(fd: int, chunk: Chunk, pool: Buffer) -> int:
    memory = pool.tensor.numpy().data
    targets = [memory[offset : offset + nbytes] for offset, nbytes in chunk.targets]
    position = chunk.start
    while targets:
        try:
            count = os.preadv(fd, targets, position)
        except OSError as error:
            if error.errno == errno.EFAULT and pool.segment is not None:
                pool.segment.reserve(*chunk.targets[0])
            raise CheckpointError(
                f"{_at(chunk.file, position)} cannot be read: {error.strerror}; check the disk or the mount"
            ) from error
        if count == 0:
            raise CheckpointError(
                f"{_at(chunk.file, position)} ends at byte {position}: the file was cut short while it was read; "
                "register it when it is complete"
            )
        position += count
        targets = _after(targets, count)
    return chunk.nbytes


def _after(targets: list[memoryview], count: int) -> list[memoryview]:
    """What is left of ``targets`` when ``count`` bytes have been written to them."""
    for index, target in enumerate(targets):
        if count < len(target):
            return [target[count:], *targets[index + 1 :]]
        count -= len(target)
    return []


def _at(file: CheckpointFile, position: int) -> str:
    name = next(entry.spec.name for entry in file.tensors if entry.offset <= position < entry.end)
    return f"{file.path}: tensor '{name}'"
