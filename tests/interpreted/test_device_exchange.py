"""Elements change places with what lies at their addresses in one launch, and back."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport.deltas import UNIT_DTYPES
from ckpt_transport.deltas.device_exchange import BLOCK, compile_exchange, exchange_by_kernel


@pytest.mark.parametrize("unit", UNIT_DTYPES)
def test_given_elements_of_two_tensors_when_they_are_exchanged_twice_then_all_is_as_it_was(unit: int) -> None:
    dtype, count = UNIT_DTYPES[unit], BLOCK + 77
    memories = [torch.randint(0, 256, (unit * n,), dtype=torch.uint8).view(dtype) for n in (3 * count, count)]
    values = torch.randint(0, 256, (unit * count,), dtype=torch.uint8).view(dtype)
    places = torch.randperm(3 * count)[: count - 9].sort().values, torch.arange(5, 14)
    addresses = torch.cat([memory.data_ptr() + unit * each for memory, each in zip(memories, places, strict=True)])
    before, brought = [memory.clone() for memory in memories], values.clone()
    compile_exchange(addresses, values)
    assert all(map(torch.equal, memories, before))
    assert torch.equal(values, brought)
    exchange_by_kernel(addresses, values)
    served = torch.cat([memory[each] for memory, each in zip(memories, places, strict=True)])
    kept = torch.cat([memory[each] for memory, each in zip(before, places, strict=True)])
    assert torch.equal(served, brought)
    assert torch.equal(values, kept)
    exchange_by_kernel(addresses, values)
    assert all(map(torch.equal, memories, before))
    assert torch.equal(values, brought)
