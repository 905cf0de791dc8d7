"""Has the kernels of this library compiled before they are needed."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from ckpt_transport.memory.copy_table import Addresses, CopyTable, has_copy_tables
from ckpt_transport.memory.digest import digest
from ckpt_transport.memory.digest_pages import PAGE_BYTES
from ckpt_transport.memory.fence import fence_on, stream_for
from ckpt_transport.memory.strided_bytes import StridedBytes


@cache
def compile_kernels(device: torch.device) -> None:
    """Run on a few bytes what an update runs on ``device``, on a stream of its own, once in this process. Nothing is
    done for the host."""
    if device.type != "cuda":
        return
    stream = stream_for("warming up", device)
    with torch.cuda.device(device), torch.cuda.stream(stream):
        source, target = torch.zeros(2, 2 * PAGE_BYTES, dtype=torch.uint8, device=device)
        digest([source])
        digest([source, target])
        if has_copy_tables(device):
            one, length = np.zeros(1, np.int64), np.full(1, source.numel(), np.int64)
            table = CopyTable(device, StridedBytes.contiguous(one, one, one, one, length))
            sides = Addresses(device, [source.data_ptr()]), Addresses(device, [target.data_ptr()])
            table.copy(*sides)
            table.exchange(*sides)
        fence_on(stream).synchronize()
