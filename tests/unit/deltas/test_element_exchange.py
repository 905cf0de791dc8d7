"""Elements change places with what lies at their addresses, and back."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.deltas import UNIT_DTYPES, ElementExchange, host_exchange, why_no_exchange

HOST = torch.device("cpu")


def some(count: int, unit: int) -> torch.Tensor:
    return torch.randint(0, 256, (count * unit,), dtype=torch.uint8).view(UNIT_DTYPES[unit])


@given(
    unit=st.sampled_from(sorted(UNIT_DTYPES)),
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    share=st.sampled_from([0, 0.01, 0.5, 1]),
    shift=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_given_elements_of_several_tensors_when_they_are_exchanged_twice_then_all_is_as_it_was(
    unit: int, sizes: list[int], share: float, shift: int, seed: int
) -> None:
    torch.manual_seed(seed)
    memories = [torch.randint(0, 256, (shift + unit * n,), dtype=torch.uint8) for n in sizes]
    served = [memory[shift:].numpy().view(f"u{unit}") for memory in memories]
    before = [each.clone() for each in memories]
    taken = [torch.rand(n).numpy() < share for n in sizes]
    addresses = np.concatenate(
        [each.ctypes.data + unit * np.flatnonzero(mask) for each, mask in zip(served, taken, strict=True)]
    )
    values = some(len(addresses), unit)
    brought = values.clone()
    expected = [each.copy() for each in served]
    ends = np.cumsum([mask.sum() for mask in taken])[:-1]
    for each, mask, part in zip(expected, taken, np.split(brought.numpy().view(f"u{unit}"), ends), strict=True):
        each[mask] = part
    exchange = ElementExchange(torch.from_numpy(addresses), values, unit, HOST)
    exchange.run()
    assert all(map(np.array_equal, served, expected))
    exchange.run()
    assert all(torch.equal(*pair) for pair in zip(memories, before, strict=True))
    assert torch.equal(values, brought)


def test_given_more_elements_than_a_chunk_when_they_descend_then_all_are_exchanged() -> None:
    count = 2 * host_exchange.CHUNK_ELEMENTS + 5
    served, values = some(count, 2), some(count, 2)
    kept, brought = served.clone(), values.clone()
    addresses = served.data_ptr() + 2 * torch.arange(count - 1, -1, -1)
    ElementExchange(addresses, values, 2, HOST).run()
    assert torch.equal(served, brought.flip(0))
    assert torch.equal(values, kept.flip(0))


def test_given_an_interrupt_while_elements_change_places_then_all_have_when_it_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served, values = torch.zeros(300_000, dtype=torch.int16), torch.ones(300_000, dtype=torch.int16)
    at_work = host_exchange._exchanged

    def interrupted(memory: np.ndarray, places: np.ndarray, brought: np.ndarray) -> None:
        at_work(memory, places[:1], brought[:1])
        signal.raise_signal(signal.SIGINT)
        at_work(memory, places[1:], brought[1:])

    monkeypatch.setattr(host_exchange, "_exchanged", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ElementExchange(served.data_ptr() + 2 * torch.arange(len(served)), values, 2, HOST).run()
    assert served.all()
    assert not values.any()


def test_given_values_of_another_size_then_they_are_refused() -> None:
    with pytest.raises(ValueError, match="2 addresses do not go with 2 values of torch"):
        ElementExchange(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int32), 2, HOST)
    assert why_no_exchange(HOST) == ""
