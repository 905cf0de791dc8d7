"""A GPU computes digests by a Triton kernel, or by torch's operations where Triton is not installed.

The digest is that of :mod:`ckpt_transport.memory.digest_pages`. Torch has signed words only. Sums and products modulo
2^64 are the same, and shifts are masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import torch

from ckpt_transport.memory.copy_table import Addresses
from ckpt_transport.memory.digest_pages import (
    ALIGNMENT,
    COLUMN_SALT,
    COLUMNS,
    GOLDEN,
    MULTIPLIERS,
    PAGE_BYTES,
    ROWS,
    SHIFTS,
    WARPS,
    WORD_BYTES,
    key_table,
    page_count,
)
from ckpt_transport.memory.digest_table import DigestedRun, DigestTable
from ckpt_transport.memory.launch import Launch, has_kernels

KNOWN_TABLES = 4096
"""So many tables stay on devices: as many as an update may have buckets of several runs."""
PAGES = 64
"""As many are worked on at a time by torch's operations."""


def digest_on_device(runs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Enqueue :func:`ckpt_transport.memory.digest.digest` of bytes on a GPU."""
    device = runs[0].device
    with torch.cuda.device(device):
        sums = torch.zeros(2, dtype=torch.int64, device=device)
        if has_kernels():
            aligned = [run if run.data_ptr() % ALIGNMENT == 0 else run.clone() for run in runs]
            if len(aligned) == 1:
                add_by_kernel(sums, aligned[0], 0)
            else:
                add_runs_by_kernel(sums, aligned)
        else:
            first = 0
            for run in runs:
                add_by_torch(sums, run, first)
                first += page_count(run.numel())
        return sums


def add_by_kernel(sums: torch.Tensor, raw: torch.Tensor, first: int) -> None:
    """As :func:`add_by_torch`, of bytes at a multiple of :data:`ALIGNMENT`, on the current device."""
    if pages := page_count(raw.numel()):
        _kernel_on(raw.device)(pages, sums, raw, raw.numel(), first, key_table(raw.device))


def add_runs_by_kernel(sums: torch.Tensor, runs: Sequence[torch.Tensor]) -> None:
    """As :func:`add_by_kernel`, of several runs in one launch; the first begins with page 0."""
    base = runs[0].data_ptr()
    table = _table(sums.device, tuple((run.data_ptr() - base, run.numel()) for run in runs))
    table.add(sums, Addresses(sums.device, [base]))


def add_by_torch(sums: torch.Tensor, raw: torch.Tensor, first: int) -> None:
    """Add the pages of a run to both sums, by operations that every device has; its first is page ``first``."""
    for number in range(0, page_count(raw.numel()), PAGES):
        some = raw[number * PAGE_BYTES : (number + PAGES) * PAGE_BYTES]
        missing = -some.numel() % PAGE_BYTES
        whole = torch.nn.functional.pad(some, (0, missing)) if missing else some
        if whole.data_ptr() % WORD_BYTES or whole.storage_offset() % WORD_BYTES:
            whole = whole.clone()
        pages = whole.view(torch.int64).view(-1, ROWS, COLUMNS)
        rows = (pages * key_table(raw.device)).sum(2)
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


@lru_cache(KNOWN_TABLES)
def _table(device: torch.device, runs: tuple[tuple[int, int], ...]) -> DigestTable:
    return DigestTable(device, [DigestedRun(0, start, nbytes) for start, nbytes in runs])


@cache
def _kernel_on(device: torch.device) -> Launch:
    """The kernel as it is compiled for one device. Only where Triton is installed it can be imported."""
    from ckpt_transport.memory.digest_kernel import add_pages

    return Launch(add_pages, WARPS)
