"""The digest that kernels compute is that of a CPU."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport.memory.device_digest import add_by_kernel, add_runs_by_kernel
from ckpt_transport.memory.digest import ALIGNMENT, PAGE_BYTES, as_bytes, digest

pytestmark = pytest.mark.timeout(300)
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
