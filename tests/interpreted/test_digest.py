"""The digest that kernels compute is that of a CPU."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport.memory import Addresses
from ckpt_transport.memory.device_digest import add_by_kernel, add_runs_by_kernel
from ckpt_transport.memory.digest import as_bytes, digest
from ckpt_transport.memory.digest_pages import ALIGNMENT, PAGE_BYTES
from ckpt_transport.memory.digest_table import DigestedRun, DigestTable

HOST = torch.device("cpu")
SIZES = [1, 7, 8, 4096, 0, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 9]


def some(nbytes: int) -> torch.Tensor:
    raw = torch.randint(0, 256, (nbytes + ALIGNMENT,), dtype=torch.uint8)
    return raw[-raw.data_ptr() % ALIGNMENT :][:nbytes]


@pytest.mark.parametrize("nbytes", SIZES)
def test_given_one_run_then_the_kernel_gives_what_a_cpu_gives(nbytes: int) -> None:
    raw, sums = some(nbytes), torch.zeros(2, dtype=torch.int64)
    add_by_kernel(sums, raw, 0)
    assert as_bytes(sums) == as_bytes(digest([raw]))


def test_given_many_runs_then_one_launch_gives_what_a_cpu_gives() -> None:
    runs = [some(nbytes) for nbytes in SIZES]
    for several in (runs, runs[::-1], runs[:2]):
        sums = torch.zeros(2, dtype=torch.int64)
        add_runs_by_kernel(sums, several)
        assert as_bytes(sums) == as_bytes(digest(several))


def test_given_a_table_when_its_runs_come_to_lie_elsewhere_then_the_digest_is_that_of_what_is_there() -> None:
    spans = [DigestedRun(1, 32, 100), DigestedRun(0, 0, PAGE_BYTES + 8), DigestedRun(1, 0, 7), DigestedRun(0, 16, 0)]
    table = DigestTable(HOST, spans)
    for _ in range(2):
        memories = some(2 * PAGE_BYTES), some(200)
        addresses = Addresses(HOST, [memory.data_ptr() for memory in memories])
        assert table.reads(addresses)
        sums = torch.zeros(2, dtype=torch.int64)
        table.add(sums, addresses)
        assert as_bytes(sums) == as_bytes(digest([memories[m][start : start + size] for m, start, size in spans]))
    assert not table.reads(Addresses(HOST, [memories[0].data_ptr(), memories[1].data_ptr() + 8]))
