"""The digest of many short runs of host memory is computed from where they lie: nobody makes a view of each."""

from __future__ import annotations

import numpy as np
import torch

from ckpt_transport.memory.copy import by_threads
from ckpt_transport.memory.cores import usable_cores
from ckpt_transport.memory.digest_pages import Words
from ckpt_transport.memory.host_copies import Numbers
from ckpt_transport.memory.host_digest import SHORT_BYTES, add_short
from ckpt_transport.memory.parts import Parts
from ckpt_transport.memory.runs import Runs, addresses_of, starts_of

AT_ONCE = 512
"""Runs that a thread takes: to hand over fewer costs more than their digest does."""


def are_short(parts: Parts) -> bool:
    """Whether all are so short that :func:`digest_of_places` takes them."""
    return bool(((parts.sizes > 0) & (parts.sizes <= SHORT_BYTES)).all())


def places_in(runs: Runs, parts: Parts) -> Numbers:
    """The address of each part, which lies within one run on the host."""
    starts, addresses = (np.array(each, np.int64) for each in (starts_of(runs), addresses_of(runs)))
    numbers = np.searchsorted(starts, parts.starts, side="right") - 1
    return addresses[numbers] + (parts.starts - starts[numbers])


def digest_of_places(addresses: Numbers, sizes: Numbers) -> torch.Tensor:
    """What :func:`ckpt_transport.memory.digest.digest` says of short runs of host memory; all cores work on many.

    Args:
        addresses, sizes: of each. Whoever calls keeps the memory.
    """
    found: list[Words] = []

    def add(first: int) -> None:
        sums = np.zeros(2, np.uint64)
        some = slice(first, first + AT_ONCE)
        with np.errstate(over="ignore"):
            add_short(sums, addresses[some].tolist(), sizes[some].tolist(), first)
        found.append(sums)

    by_threads(range(0, len(sizes), AT_ONCE), add, usable_cores())
    return torch.from_numpy(np.add.reduce(np.array(found), axis=0).view(np.int64))
