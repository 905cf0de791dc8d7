"""Host memory that a GPU reads and writes where it lies."""

from __future__ import annotations

import mmap
import weakref
from concurrent.futures import ThreadPoolExecutor

import torch

from ckpt_transport.errors import BudgetError
from ckpt_transport.memory.cores import usable_cores
from ckpt_transport.memory.pages import populate
from ckpt_transport.memory.pinning import register, unregister


def page_locked(nbytes: int) -> torch.Tensor:
    """New memory of the host, page-locked for as long as any tensor lies in it. Starts CUDA.

    Returns: uint8, one-dimensional, of ``nbytes`` bytes.

    Raises:
        BudgetError: it cannot be had, or not page-locked.
    """
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8)
    try:
        memory = mmap.mmap(-1, nbytes)
        raw = torch.frombuffer(memory, dtype=torch.uint8)
        with ThreadPoolExecutor(usable_cores(), "ckpt-transport-pages") as threads:
            populate(raw, lambda start, length: None, threads)
    except (OSError, MemoryError, RuntimeError) as error:
        raise BudgetError(f"no host memory for {nbytes:,} bytes: {error}") from error
    address = raw.data_ptr()
    if not register(address, nbytes):
        raise BudgetError(f"{nbytes:,} bytes of host memory cannot be page-locked, so a GPU cannot read them")
    weakref.finalize(memory, unregister, address)
    return raw
