"""One digest of all that an engine serves, so that engines can be compared."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping

import torch

from ckpt_transport import dtypes
from ckpt_transport.memory.digest import as_bytes, digest


def digest_of_served(tensors: Mapping[str, torch.Tensor]) -> str:
    """A digest of names, types, shapes and bytes, in hexadecimal: equal where all of these are.

    The bytes of one device take one pass over its memory, see :mod:`ckpt_transport.memory.digest`.

    Args:
        tensors: plain ones, by name, on any devices.
    """
    by_device: defaultdict[torch.device, list[torch.Tensor]] = defaultdict(list)
    whole = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name} {dtypes.name_of(tensor.dtype)} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            by_device[tensor.device].append(tensor.detach().contiguous().view(-1).view(torch.uint8))
    for runs in by_device.values():
        whole.update(as_bytes(digest(runs)))
    return whole.hexdigest()
