"""One digest of all that an engine serves, so that engines can be compared."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport import dtypes
from ckpt_transport.engine.served_elements import ServedElements
from ckpt_transport.memory.dense import in_memory_order, is_dense
from ckpt_transport.memory.digest import as_bytes, digest
from ckpt_transport.memory.kept_digest import KeptDigest


def digest_of_served(tensors: Mapping[str, torch.Tensor]) -> str:
    """A digest of names, types, shapes and bytes, in hexadecimal: equal where all of these are, in whatever order of
    memory.

    The bytes of one device take one pass over its memory, see :mod:`ckpt_transport.memory.digest_pages`.

    Args:
        tensors: plain ones, by name, on any devices.
    """
    by_device: defaultdict[torch.device, list[torch.Tensor]] = defaultdict(list)
    for _, tensor in sorted(tensors.items()):
        if tensor.numel():
            by_device[tensor.device].append(tensor.detach().contiguous().view(-1).view(torch.uint8))
    return _digest(tensors, map(digest, by_device.values()))


def digest_of_elements(elements: ServedElements) -> str:
    """A digest of all that a delta changes: of what is exchanged by element, and of modules that come whole."""
    return digest_beside_whole(digest_of_served(elements.tensors), elements)


def digest_beside_whole(exchanged: str, elements: ServedElements) -> str:
    """As :func:`digest_of_elements`, where the digest of what is exchanged by element is known."""
    if not elements.whole_served:
        return exchanged
    whole = {name: in_memory_order(each) if is_dense(each) else each for name, each in elements.whole_served.items()}
    return f"{exchanged} {digest_of_served(whole)}"


class ServedSums:
    """The digest of what an engine serves, kept up to date from what deltas change.

    Args:
        tensors: for which :func:`can_be_kept` holds.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
        self._kept = KeptDigest(_runs(tensors))

    @property
    def digest(self) -> str:
        """As :func:`digest_of_served`."""
        return _digest(self._tensors, [self._kept.sums])

    def change(
        self, addresses: npt.NDArray[np.int64], old: npt.NDArray[np.integer], new: npt.NDArray[np.integer]
    ) -> bool:
        """See :meth:`~ckpt_transport.memory.kept_digest.KeptDigest.change`."""
        return self._kept.change(addresses, old, new)


def can_be_kept(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether all of them are in host memory, contiguous, and apart from each other."""
    if not all(tensor.is_cpu and tensor.is_contiguous() for tensor in tensors.values()):
        return False
    places = sorted((run.data_ptr(), run.data_ptr() + run.numel()) for run in _runs(tensors))
    return bool(places) and all(one[1] <= other[0] for one, other in pairwise(places))


def _runs(tensors: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().view(-1).view(torch.uint8) for _, tensor in sorted(tensors.items()) if tensor.numel()]


def _digest(tensors: Mapping[str, torch.Tensor], sums: Iterable[torch.Tensor]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name} {dtypes.name_of(tensor.dtype)} {tuple(tensor.shape)}\n".encode())
    for each in sums:
        whole.update(as_bytes(each))
    return whole.hexdigest()
