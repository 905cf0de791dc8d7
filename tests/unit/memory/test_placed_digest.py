"""Given the places of many short runs, then their digest is that of the runs, and nobody makes a view of one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ckpt_transport.memory import DistantMemory, HostCopies, Landing, MemoryRun, Parts, copy_batch
from ckpt_transport.memory.digest import as_bytes, digest
from ckpt_transport.memory.host_digest import SHORT_BYTES
from ckpt_transport.memory.placed_digest import AT_ONCE, are_short, digest_of_places, places_in


def contents(nbytes: int) -> torch.Tensor:
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def spread(sizes: list[int], nbytes: int) -> Parts:
    """Parts of these sizes at odd places of so many bytes."""
    step = (nbytes - SHORT_BYTES) // len(sizes)
    return Parts((number * step + number % 3, size) for number, size in enumerate(sizes))


@pytest.mark.parametrize("count", [1, 31, 32, 33, AT_ONCE, 3 * AT_ONCE + 5])
def test_given_short_runs_then_their_digest_from_where_they_lie_is_theirs(count: int) -> None:
    memory = contents(4 << 20)
    sizes = [1 + number * 977 % SHORT_BYTES for number in range(count)]
    parts = spread(sizes, memory.numel())
    runs = [MemoryRun(0, memory[: 1 << 20]), MemoryRun(1 << 20, memory[1 << 20 :])]
    if count > 1:
        parts = Parts((at, size) for at, size in parts if at + size <= 1 << 20 or at >= 1 << 20)
    assert are_short(parts)
    found = digest_of_places(places_in(runs, parts), parts.sizes)
    assert as_bytes(found) == as_bytes(digest([memory[at : at + size] for at, size in parts]))


def test_given_a_run_that_is_longer_or_empty_then_they_are_not_all_short() -> None:
    assert not are_short(Parts([(0, 16), (64, SHORT_BYTES + 1)]))
    assert not are_short(Parts([(0, 16), (64, 0)]))


def test_given_parts_that_land_apart_or_nowhere_then_all_of_them_are_there_to_be_compared() -> None:
    """Given a landing that takes some bytes in one run, some in two and some not, then each part is as it was sent."""
    there, here = contents(1 << 16), torch.zeros(1 << 16, dtype=torch.uint8)

    def read(copies: HostCopies) -> None:
        copy_batch(copies)

    memory = DistantMemory([0], [there.data_ptr()], [there.numel()], read)
    starts, sizes = np.array([0, 1000, 1500]), np.array([1000, 500, 500])
    landing = Landing(starts, here.data_ptr() + np.array([5000, 0, 9000]), sizes, here)
    parts = Parts([(10, 900), (900, 300), (1400, 200), (4000, 64)])
    landed = memory.read_into(landing, parts)
    assert [run.at for run in landed] == [at for at, _ in parts]
    assert all(run.raw.equal(there[at : at + size]) for run, (at, size) in zip(landed, parts, strict=True))
    assert here[5000:6000].equal(there[:1000])
    assert here[9000:9500].equal(there[1500:2000])
    assert places_in(landed, parts).tolist()[0] == here.data_ptr() + 5010
