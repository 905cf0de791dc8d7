"""Which files and tensors a checkpoint consists of, and which of them one rank holds."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ckpt_transport.errors import CheckpointError
from ckpt_transport.store.header import TensorEntry, read_header
from ckpt_transport.store.strict_json import parse_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{1,9})-of-(?P<count>\d{1,6})\.safetensors")


class FileStamp(NamedTuple):
    """What tells one content of a file from another: it is written again, or another file takes its place."""

    device: int
    inode: int
    nbytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """One safetensors file and what is wanted of it.

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
    """The checkpoint that consists of exactly these files, in the order of their names.

    Raises:
        CheckpointError: there are none, one is missing or damaged, or two hold a tensor of the same name.
    """
    if not paths:
        raise CheckpointError("a checkpoint needs at least one file, and the list of files is empty")
    return _checked([_read_file(path) for path in sorted(paths)])


def from_directory(directory: Path) -> tuple[CheckpointFile, ...]:
    """The checkpoint in a directory as Hugging Face lays it out.

    With ``model.safetensors.index.json`` it is exactly the tensors the index lists (what else its files hold is left
    out, as Hugging Face's own loader does); else it is ``model.safetensors``; else all ``*.safetensors`` files.

    Raises:
        CheckpointError: it is no directory or holds no checkpoint, the index is malformed or wrong, or a file is.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory; give the directory of the checkpoint, or its files")
    if (directory / INDEX).exists():
        return _from_index(directory / INDEX)
    if (directory / SINGLE).exists():
        return from_files([directory / SINGLE])
    paths = list(directory.glob("*.safetensors"))
    if not paths:
        raise CheckpointError(f"{directory} holds no *.safetensors file; download the checkpoint in that format")
    _check_complete(paths)
    return from_files(paths)


def _check_complete(paths: Sequence[Path]) -> None:
    """Shards say in their names how many there are."""
    for path in paths:
        if found := SHARD.fullmatch(path.name):
            name, digits, count = found["name"], len(found["number"]), int(found["count"])
            shards = [path.with_name(f"{name}-{n + 1:0{digits}}-of-{found['count']}.safetensors") for n in range(count)]
            if missing := [shard for shard in shards if shard not in paths]:
                raise CheckpointError(
                    f"{missing[0]} is missing, of {count} files that {path.name} is one of; download all of them"
                )


def from_path(path: Path) -> tuple[CheckpointFile, ...]:
    """The checkpoint at ``path``: a directory, or one file. Raises as the functions above."""
    return from_directory(path) if path.is_dir() else from_files([path])


def share(files: Sequence[CheckpointFile], rank: int, world_size: int) -> tuple[CheckpointFile, ...]:
    """What ``rank`` holds of a checkpoint that ``world_size`` ranks share.

    Each tensor goes whole to one rank; a rank's tensors are next to each other in the order of files and bytes. A
    rank gets those whose middle byte falls into its part of the whole, so parts differ by at most one tensor at
    either end. The result depends on nothing but the arguments.
    """
    nbytes = [entry.nbytes for file in files for entry in file.tensors]
    owners = _owners(nbytes, world_size)
    parts: list[CheckpointFile] = []
    for file in files:
        of_file = itertools.islice(owners, len(file.tensors))
        own = tuple(entry for entry, owner in zip(file.tensors, of_file, strict=True) if owner == rank)
        if own:
            parts.append(replace(file, tensors=own))
    return tuple(parts)


def _owners(nbytes: Sequence[int], world_size: int) -> Iterator[int]:
    total = sum(nbytes)
    start = 0
    for index, size in enumerate(nbytes):
        middle, whole = (2 * start + size, 2 * total) if total else (index, len(nbytes))
        yield min(middle * world_size // whole, world_size - 1)
        start += size


def _from_index(index: Path) -> tuple[CheckpointFile, ...]:
    wanted: dict[Path, set[str]] = {}
    for name, file in _weight_map(index).items():
        path = index.parent / file
        if path not in wanted and not path.exists():
            raise CheckpointError(f"{index} maps tensor {name!r} to {file}, which is missing; download that file")
        wanted.setdefault(path, set()).add(name)
    return _checked([_only(_read_file(path), wanted[path], index) for path in sorted(wanted)])


def _weight_map(index: Path) -> dict[str, str]:
    try:
        text = index.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read: {error.strerror}") from error
    weight_map = parse_object(text, str(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no 'weight_map' of tensors to files; download it again")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file or "\0" in file:
            raise CheckpointError(f"{index} maps tensor {name!r} to {file!r}, which is no file name; download it again")
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise CheckpointError(
                f"{index} maps tensor {name!r} to {file!r}, outside its own directory; put the file next to the index"
            )
    return weight_map


def _only(file: CheckpointFile, names: set[str], index: Path) -> CheckpointFile:
    tensors = tuple(entry for entry in file.tensors if entry.spec.name in names)
    missing = names - {entry.spec.name for entry in tensors}
    if missing:
        raise CheckpointError(
            f"{index} maps tensor {min(missing)!r} to {file.path}, which does not hold it; index and files are of "
            "different downloads: download both again"
        )
    return replace(file, tensors=tensors)


def _checked(files: Sequence[CheckpointFile]) -> tuple[CheckpointFile, ...]:
    holder: dict[str, Path] = {}
    for file in files:
        for entry in file.tensors:
            name = entry.spec.name
            if name in holder:
                raise CheckpointError(
                    f"tensor '{name}' is in {holder[name]} and in {file.path}; give only the files of one checkpoint"
                )
            holder[name] = file.path
    if not holder:
        raise CheckpointError(f"{', '.join(str(file.path) for file in files)} hold no tensor at all; save them again")
    return tuple(files)


def _read_file(path: Path) -> CheckpointFile:
    with _opened(path) as fd:
        return CheckpointFile(path, _stamp(fd), read_header(path, fd))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
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
