"""Given private memory that is lent again, then it lies in huge pages from the second time on, whoever lends it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ckpt_transport.checkpoint.scattered import ReadableTensors
from ckpt_transport.checkpoint.watched import Watched
from ckpt_transport.memory import use_huge_pages
from ckpt_transport_shm.private_memory import LastDescribed

NBYTES = 16 << 20


def lent(tensor: torch.Tensor) -> ReadableTensors:
    """The same memory, lent by a view of its own each time."""
    view = tensor.view(-1)
    return ReadableTensors.of([view], [0], NBYTES, Watched({"weights": view}))


def huge_pages_of(tensor: torch.Tensor) -> int:
    """Bytes of huge pages in the mapping that holds it."""
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(encoding="ascii")):
        first, last = (int(each, 16) for each in mapping.split(maxsplit=1)[0].split("-"))
        if first <= tensor.data_ptr() < last:
            found = re.search(r"AnonHugePages: +(\d+) kB", mapping)
            return int(found[1]) << 10 if found else 0
    raise LookupError(f"nothing is mapped at {tensor.data_ptr():#x}")


def filled(value: int) -> torch.Tensor:
    return torch.full((NBYTES,), value, dtype=torch.uint8)


def test_given_two_versions_that_are_lent_in_turns_then_both_are_put_into_huge_pages() -> None:
    probe = filled(1)
    use_huge_pages([(probe.data_ptr(), NBYTES)])
    if not huge_pages_of(probe):
        pytest.skip("this system gives no huge pages when it is asked")
    described = LastDescribed()
    versions = [filled(2), filled(3)]
    first = [described.describe(lent(each)) for each in versions]
    again = [described.describe(lent(each)) for each in versions]
    assert first == again
    assert first[0] != first[1]
    assert all(map(huge_pages_of, versions))
    assert [int(each.min()) for each in versions] == [int(each.max()) for each in versions] == [2, 3]
