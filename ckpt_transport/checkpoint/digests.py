"""Holders compare what they hold by the digests of a stored version, which this module computes."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import msgspec

from ckpt_transport.checkpoint.stored_version import StoredVersion
from ckpt_transport.memory import usable_cores

DIGEST_BYTES = 16


def with_digests(stored: StoredVersion) -> StoredVersion:
    """Make the same version with a manifest that says the digest of every tensor's bytes.

    BLAKE2b (RFC 7693), on all cores: Python lets go of its lock meanwhile.
    """

    def digest(number: int) -> bytes:
        tensor = stored.manifest.tensors[number]
        raw = stored.buffers[tensor.extent].tensor[tensor.offset : tensor.offset + tensor.nbytes]
        return hashlib.blake2b(raw.numpy().data, digest_size=DIGEST_BYTES).digest()

    with ThreadPoolExecutor(usable_cores(), "ckpt-transport-digest") as threads:
        digests = tuple(threads.map(digest, range(len(stored.manifest.tensors))))
    return StoredVersion(msgspec.structs.replace(stored.manifest, digests=digests), stored.buffers)
