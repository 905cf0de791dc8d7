"""Real safetensors files for tests, good and bad, written without the code under test."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch

from ckpt_transport import dtypes
from ckpt_transport.checkpoint import StoredVersion
from ckpt_transport.memory.segment import PREFIX, SHM


def content(header: object, data: bytes = b"") -> bytes:
    """A file with this header (JSON text as it is, anything else encoded) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, header: object, data: bytes = b"") -> Path:
    path.write_bytes(content(header, data))
    return path


def every_dtype() -> tuple[dict[str, object], bytes]:
    """Header and data of a file with a tensor of every dtype there is, elements 3 x 8, in an order that aligns them."""
    header: dict[str, object] = {}
    data = b""
    for dtype in sorted(dtypes.BITS, key=lambda name: -dtypes.BITS[name]):
        nbytes = dtypes.nbytes(dtype, (3, 8))
        header[f"of {dtype}"] = entry(dtype, [3, 8], len(data), len(data) + nbytes)
        data += os.urandom(nbytes)
    return header, data


def write_sparse(path: Path, tensors: Mapping[str, int]) -> Path:
    """A file of U8 tensors of these sizes, all zero, which takes no room on disk."""
    header: dict[str, object] = {}
    end = 0
    for name, nbytes in tensors.items():
        header[name] = entry("U8", [nbytes], end, end + nbytes)
        end += nbytes
    start = content(header)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + end)
    return path


def oracle(*paths: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """What the safetensors library finds in these files: dtype, shape and bytes by name."""
    return {name: tensor for path in paths for name, tensor in oracle_of(path.read_bytes()).items()}


def oracle_of(file: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """What the safetensors library finds in a file that is in memory."""
    found = safetensors.deserialize(file)  # type: ignore[no-untyped-call]
    return {name: (tensor["dtype"], tensor["shape"], bytes(tensor["data"])) for name, tensor in found}


def held(*versions: StoredVersion) -> dict[str, tuple[str, list[int], bytes]]:
    """What stored versions hold, in the oracle's terms."""
    return {
        tensor.spec.name: (
            tensor.spec.dtype,
            list(tensor.spec.shape),
            raw(stored, tensor.spec.name).numpy().tobytes(),
        )
        for stored in versions
        for tensor in stored.manifest.tensors
    }


def raw(stored: StoredVersion, name: str) -> torch.Tensor:
    """A tensor's bytes: one-dimensional, uint8."""
    place = next(tensor for tensor in stored.manifest.tensors if tensor.spec.name == name)
    return stored.buffers[place.extent].tensor[place.offset : place.offset + place.nbytes]


def segments() -> set[Path]:
    """The segments of this process that are in ``/dev/shm`` now."""
    return set(SHM.glob(f"{PREFIX}{os.getuid()}-{os.getpid()}-*"))
