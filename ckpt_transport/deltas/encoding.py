"""What differs between two versions of a range is found and encoded, on the device where they are."""

from __future__ import annotations

import torch

from ckpt_transport.deltas.device_encoding import encode_by_kernels
from ckpt_transport.deltas.encoded import Encoded
from ckpt_transport.deltas.host_encoding import encode_on_host
from ckpt_transport.deltas.torch_encoding import encode_by_torch
from ckpt_transport.memory import has_copy_tables


def encode(base: torch.Tensor, new: torch.Tensor, unit: int) -> Encoded:
    """Encode what differs, in the form that takes the fewest bytes; on a GPU in the order of its current stream.

    Args:
        base, new: uint8, one-dimensional, contiguous, of equal length, on one device.
        unit: bytes of an element: 1, 2, 4 or 8. The length is a multiple of it.
    """
    if new.is_cpu:
        return encode_on_host(base, new, unit)
    with torch.cuda.device(new.device):
        return (encode_by_kernels if has_copy_tables(new.device) else encode_by_torch)(base, new, unit)
