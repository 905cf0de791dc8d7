"""What differs between two versions of a range is found and encoded, on the device where they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ckpt_transport.deltas.device_encoding import encode_by_kernels
from ckpt_transport.deltas.encoded import Encoded
from ckpt_transport.deltas.host_encoding import encode_on_host
from ckpt_transport.deltas.torch_encoding import encode_by_torch
from ckpt_transport.memory import has_copy_tables

BOUNDLESS = 1 << 62


def encode(base: torch.Tensor, new: torch.Tensor, unit: int) -> Encoded:
    """Encode what differs, in the form that takes the fewest bytes; on a GPU in the order of its current stream.

    Args:
        base, new: uint8, one-dimensional, contiguous, of equal length, on one device.
        unit: bytes of an element: 1, 2, 4 or 8. The length is a multiple of it.
    """
    found = encode_each([base], [new], unit, BOUNDLESS)
    assert found is not None
    return found[0]


def encode_each(
    base: Sequence[torch.Tensor], new: Sequence[torch.Tensor], unit: int, most: int
) -> list[Encoded] | None:
    """As :func:`encode`, of several ranges on one device, one at least; None where that takes more than ``most`` bytes.

    A GPU is waited for once.
    """
    device = new[0].device
    if has_copy_tables(device):
        with torch.cuda.device(device):
            return encode_by_kernels(base, new, unit, most)
    if device.type == "cpu":
        return encode_on_host(base, new, unit, most)
    found: list[Encoded] = []
    for old, now in zip(base, new, strict=True):
        found.append(encode_by_torch(old, now, unit))
        most -= found[-1].raw.numel()
        if most < 0:
            return None
    return found
