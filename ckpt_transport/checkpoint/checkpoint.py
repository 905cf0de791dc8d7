"""This module finds the files and tensors of a checkpoint, and says which of them one rank holds."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ckpt_transport.checkpoint.header import TensorEntry, read_header
from ckpt_transport.errors import CheckpointError
from ckpt_transport.paths import without_nul


class FileStamp(NamedTuple):
    """Tells one content of a file from another, when the file is written again or another takes its place."""

    device: int
    inode: int
    nbytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """Names one safetensors file and the tensors that are wanted of it.

    Attributes:
        path: as it was given.
        stamp: the file when its header was read.
        tensors: in the order of their bytes.
    """

    path: Path
    stamp: FileStamp
    tensors: tuple[TensorEntry, ...]

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """The file's descriptor, open for reading. Checks at both ends that the file is the one that was described.

        Raises:
            CheckpointError: it is gone, or was changed or replaced since its header was read.
        """
        with _opened(self.path) as fd:
            self._check(fd)
            yield fd
            self._check(fd)

    def _check(self, fd: int) -> None:
        if _stamp(fd) != self.stamp:
            raise CheckpointError(f"{self.path} changed while it was registered; register it when it is complete")


def from_files(paths: Sequence[Path]) -> tuple[CheckpointFile, ...]:
    """Make the checkpoint that consists of exactly these files, in the order of their names.

    Raises:
        CheckpointError: there are none, one is missing or damaged, or two hold a tensor of the same name.
    """
    if not paths:
        raise CheckpointError("a checkpoint needs at least one file, and the list of files is empty")
    return _checked([read_file(path) for path in sorted(paths)])


def share(files: Sequence[CheckpointFile], rank: int, world_size: int) -> tuple[CheckpointFile, ...]:
    """Find what ``rank`` holds of a checkpoint that ``world_size`` ranks share; see :func:`shares`."""
    return shares(files, world_size)[rank]


def shares(files: Sequence[CheckpointFile], world_size: int) -> list[tuple[CheckpointFile, ...]]:
    """Find what each of ``world_size`` ranks holds of a checkpoint that they share, by rank.

    Each tensor goes whole to one rank; a rank's tensors are next to each other in the order of files and bytes. A
    rank gets those whose middle byte falls into its part of the whole, so parts differ by at most one tensor at
    either end. The result depends on nothing but the arguments.
    """
    nbytes = [entry.nbytes for file in files for entry in file.tensors]
    owners = _owners(nbytes, world_size)
    parts: list[list[CheckpointFile]] = [[] for _ in range(world_size)]
    for file in files:
        for owner, own in itertools.groupby(file.tensors, lambda _: next(owners)):
            parts[owner].append(replace(file, tensors=tuple(own)))
    return list(map(tuple, parts))


def _owners(nbytes: Sequence[int], world_size: int) -> Iterator[int]:
    total = sum(nbytes)
    start = 0
    for index, size in enumerate(nbytes):
        middle, whole = (2 * start + size, 2 * total) if total else (index, len(nbytes))
        yield min(middle * world_size // whole, world_size - 1)
        start += size


def _checked(files: Sequence[CheckpointFile]) -> tuple[CheckpointFile, ...]:
    holder: dict[str, Path] = {}
    for file in files:
        for entry in file.tensors:
            name = entry.spec.name
            if name in holder:
                raise CheckpointError(
                    f"tensor '{name}' is in {holder[name]} and in {file.path}; delete what is old, or give "
                    "the files of one checkpoint with files="
                )
            holder[name] = file.path
    if not holder:
        raise CheckpointError(f"{', '.join(str(file.path) for file in files)} hold no tensor at all; save them again")
    return tuple(files)


def read_file(path: Path) -> CheckpointFile:
    """Find all that one file holds.

    Raises:
        CheckpointError: it is missing, damaged or no safetensors file.
    """
    with _opened(path) as fd:
        return CheckpointFile(path, _stamp(fd), read_header(path, fd))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    without_nul(path, CheckpointError)
    try:
        # Opening a pipe would wait for a writer without O_NONBLOCK.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}; check the name and the rights") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise CheckpointError(f"{path} is not a plain file; give safetensors files")
        yield fd
    finally:
        os.close(fd)


def _stamp(fd: int) -> FileStamp:
    status = os.fstat(fd)
    return FileStamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
