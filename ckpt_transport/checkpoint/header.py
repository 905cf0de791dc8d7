"""The header of a safetensors file says which tensors the file holds, and where; this module reads it.

The format is eight bytes of little-endian header length, that many bytes of JSON, and the data, every byte of which
belongs to exactly one tensor (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import itertools
import os
import reprlib
from dataclasses import dataclass
from pathlib import Path

from ckpt_transport import dtypes
from ckpt_transport.checkpoint.strict_json import parse_object
from ckpt_transport.errors import CheckpointError
from ckpt_transport.planning.values.manifest import TensorSpec

LENGTH_NBYTES = 8
HEADER_LIMIT = 100_000_000
"""The format's own limit for the header, in bytes."""
_DIMENSION_LIMIT = 2**63
_MOST_DIMENSIONS = 64
_AGAIN = "download or save the file again"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Describes one tensor of a file.

    Attributes:
        spec: name, dtype and shape.
        offset: of its first byte, counted from the start of the file.
        nbytes: its size.
    """

    spec: TensorSpec
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


def read_header(path: Path, fd: int) -> tuple[TensorEntry, ...]:
    """List the tensors of the open file ``fd``, in the order of their bytes. Only the header is read.

    Args:
        path: the file's name, for messages.
        fd: the file, open for reading.

    Raises:
        CheckpointError: the file is not a safetensors file, is damaged or is cut short.
    """
    file_nbytes = os.fstat(fd).st_size
    if file_nbytes < LENGTH_NBYTES:
        raise CheckpointError(
            f"{path} has {file_nbytes} bytes and a safetensors file has at least {LENGTH_NBYTES}; {_AGAIN}"
        )
    header_nbytes = int.from_bytes(_pread(path, fd, LENGTH_NBYTES, 0), "little")
    if header_nbytes > HEADER_LIMIT:
        raise CheckpointError(
            f"{path} is not a safetensors file: its header would be {header_nbytes:,} bytes long, and the format "
            f"allows {HEADER_LIMIT:,}; convert it with safetensors.torch.save_file"
        )
    if header_nbytes > file_nbytes - LENGTH_NBYTES:
        raise CheckpointError(
            f"{path} is cut short, or not a safetensors file: its header is said to be {header_nbytes:,} bytes long, "
            f"and {file_nbytes - LENGTH_NBYTES:,} follow; {_AGAIN}"
        )
    return parse_header(_pread(path, fd, header_nbytes, LENGTH_NBYTES), file_nbytes, path)


def parse_header(header: bytes, file_nbytes: int, path: Path) -> tuple[TensorEntry, ...]:
    """List the tensors that a header declares, in the order of their bytes.

    Args:
        header: the JSON, without the length in front of it.
        file_nbytes: size of the whole file.
        path: the file's name, for messages.

    Raises:
        CheckpointError: the header is malformed, or does not describe every byte of the data once.
    """
    data_start = LENGTH_NBYTES + len(header)
    fields = parse_object(header, f"the header of {path}")
    _check_metadata(fields.pop("__metadata__", None), path)
    entries = [_parse_entry(name, value, data_start, path) for name, value in fields.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.end))
    _check_coverage(entries, data_start, file_nbytes, path)
    return tuple(entries)


def _pread(path: Path, fd: int, nbytes: int, offset: int) -> bytes:
    try:
        content = os.pread(fd, nbytes, offset)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check the disk or the mount") from error
    if len(content) < nbytes:
        raise CheckpointError(f"{path} became shorter while its header was read; register it when it is complete")
    return content


def _check_metadata(metadata: object, path: Path) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: '__metadata__' is not a map from strings to strings; {_AGAIN}")


def _parse_entry(name: str, value: object, data_start: int, path: Path) -> TensorEntry:
    where = f"{path}: tensor {name!r}"
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise CheckpointError(f"{where} has a name that is not Unicode text; {_AGAIN}")
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is not described by a JSON object; {_AGAIN}")
    missing = {"dtype", "shape", "data_offsets"} - value.keys()
    if missing:
        raise CheckpointError(f"{where} lacks {', '.join(sorted(missing))}; {_AGAIN}")
    dtype = value["dtype"]
    if not isinstance(dtype, str):
        raise CheckpointError(f"{where}: dtype {reprlib.repr(dtype)} is not a string; {_AGAIN}")
    shape = _integers(value["shape"])
    if shape is None or len(shape) > _MOST_DIMENSIONS or not all(0 <= size < _DIMENSION_LIMIT for size in shape):
        raise CheckpointError(
            f"{where}: shape {reprlib.repr(value['shape'])} is not a list of at most {_MOST_DIMENSIONS} sizes; {_AGAIN}"
        )
    offsets = _integers(value["data_offsets"])
    if offsets is None or len(offsets) != 2:
        raise CheckpointError(
            f"{where}: data_offsets {reprlib.repr(value['data_offsets'])} are not two integers; {_AGAIN}"
        )
    begin, end = offsets
    if not 0 <= begin <= end:
        raise CheckpointError(f"{where}: data_offsets [{begin}, {end}] are negative or run backwards; {_AGAIN}")
    try:
        nbytes = dtypes.nbytes(dtype, shape)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}; save it with a shape and a type that safetensors knows") from error
    if nbytes != end - begin:
        raise CheckpointError(
            f"{where}: data_offsets [{begin}, {end}] span {end - begin} bytes, and {dtype} {shape} takes {nbytes}; "
            f"{_AGAIN}"
        )
    return TensorEntry(TensorSpec(name, dtype, tuple(shape)), data_start + begin, nbytes)


def _integers(value: object) -> list[int] | None:
    if isinstance(value, list) and all(type(item) is int for item in value):
        return value
    return None


def _check_coverage(entries: list[TensorEntry], data_start: int, file_nbytes: int, path: Path) -> None:
    for entry in entries:
        if entry.end > file_nbytes:
            missing = max(other.end for other in entries) - file_nbytes
            raise CheckpointError(
                f"{path}: tensor '{entry.spec.name}' ends beyond the end of the file, which is cut short by {missing} "
                f"bytes; {_AGAIN}"
            )
    if entries and entries[0].offset != data_start:
        raise CheckpointError(_hole(path, data_start, entries[0].offset))
    for before, after in itertools.pairwise(entries):
        if after.offset < before.end:
            raise CheckpointError(
                f"{path}: tensors '{before.spec.name}' and '{after.spec.name}' overlap by {before.end - after.offset} "
                f"bytes; {_AGAIN}"
            )
        if after.offset > before.end:
            raise CheckpointError(_hole(path, before.end, after.offset))
    end = entries[-1].end if entries else data_start
    if end < file_nbytes:
        raise CheckpointError(_hole(path, end, file_nbytes))


def _hole(path: Path, begin: int, end: int) -> str:
    return f"{path}: bytes {begin} to {end} belong to no tensor, which the format forbids; {_AGAIN}"
