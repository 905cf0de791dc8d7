"""A GPU computes digests by a Triton kernel, or by torch's operations where Triton is not installed.

The digest is that of :mod:`ckpt_transport.memory.digest`. Torch has signed words only. Sums and products modulo 2^64
are the same, and shifts are masked.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from ckpt_transport.memory.digest import (
    COLUMN_SALT,
    COLUMNS,
    GOLDEN,
    MULTIPLIERS,
    PAGE_BYTES,
    ROWS,
    SHIFTS,
    keys,
    page_count,
)

ALIGNMENT = 16
"""Bytes; the kernel reads two words at a time."""
WARPS = 8
PAGES = 64
"""As many are worked on at a time by torch's operations."""


def digest_on_device(runs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Enqueue :func:`ckpt_transport.memory.digest.digest` of bytes on a GPU."""
    device = runs[0].device
    with torch.cuda.device(device):
        sums = torch.zeros(2, dtype=torch.int64, device=device)
        first = 0
        for run in runs:
            run = run if run.data_ptr() % ALIGNMENT == 0 else run.clone()
            if has_kernels():
                _launch_on(device)(sums, run, first)
            else:
                add_by_torch(sums, run, first)
            first += page_count(run.numel())
        return sums


@cache
def has_kernels() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def add_by_torch(sums: torch.Tensor, raw: torch.Tensor, first: int) -> None:
    """Add the pages of a run to both sums, by operations that every device has; its first is page ``first``."""
    for number in range(0, page_count(raw.numel()), PAGES):
        some = raw[number * PAGE_BYTES : (number + PAGES) * PAGE_BYTES]
        missing = -some.numel() % PAGE_BYTES
        whole = torch.nn.functional.pad(some, (0, missing)) if missing else some
        pages = whole.view(torch.int64).view(-1, ROWS, COLUMNS)
        rows = (pages * _keys(raw.device)).sum(2)
        columns = pages.sum(1)
        sums[0] += _mixed(rows, first + number, 0)
        sums[1] += _mixed(columns, first + number, COLUMN_SALT)


def signed(number: int) -> int:
    """The signed number of 64 bits that has the same bits as an unsigned one."""
    return number - (1 << 64) if number >> 63 else number


def _mixed(along: torch.Tensor, first: int, salt: int) -> torch.Tensor:
    each = along.shape[1]
    numbers = torch.arange(first * each + 1, first * each + 1 + along.numel(), device=along.device)
    mixed = along.flatten() + numbers * signed(GOLDEN) + signed(salt)
    for shift, multiplier in zip(SHIFTS, (*MULTIPLIERS, 1), strict=True):
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * signed(multiplier)
    return mixed.sum()


@cache
def _keys(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(keys().view(np.int64)).to(device)


class DigestKernel:
    """The kernel on one device. The first launch compiles; later ones skip what Triton does to find the compilation."""

    def __init__(self, device: torch.device) -> None:
        from ckpt_transport.memory.digest_kernel import add_pages

        self._kernel: Any = add_pages
        self._keys = _keys(device)
        self._compiled: Any = None

    def __call__(self, sums: torch.Tensor, raw: torch.Tensor, first: int) -> None:
        """As :func:`add_by_torch`, of bytes at a multiple of :data:`ALIGNMENT`, on the current device."""
        grid = (page_count(raw.numel()), 1, 1)
        if grid[0] == 0:
            return
        arguments = sums, raw, raw.numel(), first, self._keys
        if self._compiled is None:
            self._compiled = self._kernel[grid](*arguments, num_warps=WARPS)
        else:
            self._compiled[grid](*arguments)


_launch_on = cache(DigestKernel)
