"""Tied names must have one value: an engine has one memory for them, and whatever comes last would stay.

Sinks say in :class:`~ckpt_transport.update.joining_messages.Join` which names share memory in their engines. Where a
version brings more than one of them, their values are compared before a byte moves. Nothing is done for names that a
source knows to be one tensor, nor for what holders have told the digests of; of the rest the owners are asked for
digests.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from ckpt_transport.checkpoint.digests import DIGEST_BYTES
from ckpt_transport.errors import PlanMismatchError
from ckpt_transport.memory import Backing, StridedRange, usable_cores
from ckpt_transport.planning import Manifest, PlacedTensor
from ckpt_transport.update import messages as m

CHUNK_BYTES = 16 << 20


class Ties:
    """Finds and compares what is tied in one update.

    Args:
        joins: of all members, by rank.
        version: what is to be brought.

    Raises:
        PlanMismatchError: two tied names have different shapes or types; names both.
    """

    def __init__(self, joins: Sequence[m.Join], version: Manifest) -> None:
        self._groups: dict[tuple[str, ...], str] = {}
        """Tied names, and a sink where they are tied."""
        self._known: defaultdict[str, dict[StridedRange, bytes]] = defaultdict(dict)
        """Of each name, the digests of its parts."""
        self._asked: defaultdict[int, list[PlacedTensor]] = defaultdict(list)
        if not any(join.ties for join in joins):
            return
        specs = version.specs
        manifests = {rank: join.manifest for rank, join in enumerate(joins) if join.manifest is not None}
        known_same = [set(names) for manifest in manifests.values() for names in manifest.same]
        for join in joins:
            for tied in join.ties:
                brought = tuple(name for name in tied if name in specs)
                if len(brought) < 2 or any(set(brought) <= same for same in known_same):
                    continue
                self._groups.setdefault(brought, join.label)
                first = specs[brought[0]]
                for name in brought[1:]:
                    if (specs[name].dtype, specs[name].shape) != (first.dtype, first.shape):
                        raise PlanMismatchError(
                            f"{first} and {specs[name]} of the version have one memory in {join.label} and are not "
                            "alike; bring one of them"
                        )
        self._find({name for group in self._groups for name in group}, manifests)

    def _find(self, names: set[str], manifests: Mapping[int, Manifest]) -> None:
        """For each part of each name the digest, or somebody who has its bytes."""
        found: set[tuple[str, StridedRange]] = set()
        for rank, manifest in manifests.items():
            for number, tensor in enumerate(manifest.tensors if names else ()):
                name, part = tensor.spec.name, tensor.part
                if name not in names or (name, part) in found:
                    continue
                found.add((name, part))
                if manifest.digests:
                    self._known[name][part] = manifest.digests[number]
                else:
                    self._asked[rank].append(tensor)

    def asked_of(self, rank: int) -> tuple[PlacedTensor, ...]:
        """The tensors of which that rank is to say digests, as they lie in its own extents."""
        return tuple(self._asked.get(rank, ()))

    def check(self, answers: Mapping[int, Sequence[bytes]], version: str) -> None:
        """Compare.

        Args:
            answers: digests of what was asked, by rank.
            version: its name.

        Raises:
            PlanMismatchError: two tied names have different values; names both.
        """
        found = {name: dict(parts) for name, parts in self._known.items()}
        for rank, asked in self._asked.items():
            for tensor, digest in zip(asked, answers[rank], strict=True):
                found.setdefault(tensor.spec.name, {})[tensor.part] = digest
        for group, label in self._groups.items():
            for name in group[1:]:
                if found[name] != found[group[0]]:
                    alike = found[name].keys() == found[group[0]].keys()
                    raise PlanMismatchError(
                        f"tensors {group[0]} and {name} have one memory in {label} and "
                        f"{'different values' if alike else 'lie in different parts on the sources'} in version "
                        f"'{version}'; bring one of them, or both with the same value"
                    )


def digests_of(tensors: Sequence[PlacedTensor], extents: Sequence[Backing]) -> tuple[bytes, ...]:
    """BLAKE2b of the bytes of each tensor, as :func:`~ckpt_transport.checkpoint.with_digests` has it.

    Args:
        tensors: with numbers of ``extents``.
        extents: where their bytes come from.

    Raises:
        PlanMismatchError: a tensor does not lie in an extent.
    """
    sizes = [extent.nbytes for extent in extents]
    for tensor in tensors:
        known = 0 <= tensor.extent < len(sizes)
        if not known or not 0 <= tensor.offset <= sizes[tensor.extent] - tensor.nbytes or tensor.nbytes < 0:
            raise PlanMismatchError(f"{tensor.spec} does not lie where the coordinator says")
    if not tensors:
        return ()
    with ThreadPoolExecutor(usable_cores(), "ckpt-transport-ties") as threads:
        return tuple(threads.map(lambda tensor: _digest(tensor, extents[tensor.extent]), tensors))


def _digest(tensor: PlacedTensor, extent: Backing) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    room = torch.empty(min(CHUNK_BYTES, tensor.nbytes), dtype=torch.uint8)
    for start in range(0, tensor.nbytes, CHUNK_BYTES):
        chunk = room[: tensor.nbytes - start]
        extent.fill(chunk, tensor.offset + start)
        digest.update(chunk.numpy().data)
    return digest.digest()
