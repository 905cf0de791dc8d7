"""A share is what one sink needs of a version, where that is not all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from ckpt_transport.planning.values.manifest import TensorSpec


class Share(msgspec.Struct, frozen=True, array_like=True):
    """The bytes of a version that one sink takes in.

    Attributes:
        specs: :func:`digest_of` the tensors of the versions that it holds for.
        ranges: (tensor, first byte, number of bytes) each; those of one tensor ascend and do not touch each other.
    """

    specs: str
    ranges: tuple[tuple[str, int, int], ...]


def digest_of(specs: Iterable[TensorSpec]) -> str:
    """SHA-256 of names, types and shapes, in whatever order they come, in hexadecimal."""
    return hashlib.sha256(msgspec.msgpack.encode(sorted(specs, key=lambda spec: spec.name))).hexdigest()
