"""Elements change places with what lies at their addresses, and back."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.deltas import HostElements, HostExchange, host_exchange, why_no_exchange
from ckpt_transport.deltas.sections import UNIT_DTYPES
from ckpt_transport.memory import uninterrupted


def some(count: int, unit: int) -> np.ndarray:
    return torch.randint(0, 256, (count * unit,), dtype=torch.uint8).numpy().view(f"u{unit}")


def exchange_of(addresses: np.ndarray, values: np.ndarray) -> HostExchange:
    return HostExchange([HostElements.at(addresses, values)] if len(values) else [])


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
    brought = values.copy()
    expected = [each.copy() for each in served]
    ends = np.cumsum([mask.sum() for mask in taken])[:-1]
    for each, mask, part in zip(expected, taken, np.split(brought, ends), strict=True):
        each[mask] = part
    exchange = exchange_of(addresses, values)
    exchange.exchange()
    assert all(map(np.array_equal, served, expected))
    exchange.exchange()
    assert all(torch.equal(*pair) for pair in zip(memories, before, strict=True))
    assert np.array_equal(values, brought)


def test_given_more_elements_than_a_chunk_when_they_descend_then_all_are_exchanged() -> None:
    count = 2 * host_exchange.CHUNK_ELEMENTS + 5
    served, values = some(count, 2), some(count, 2)
    kept, brought = served.copy(), values.copy()
    addresses = served.ctypes.data + 2 * np.arange(count - 1, -1, -1)
    exchange_of(addresses, values).exchange()
    assert np.array_equal(served, brought[::-1])
    assert np.array_equal(values, kept[::-1])


def test_given_an_interrupt_while_elements_change_places_then_all_have_when_it_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served, values = np.zeros(300_000, np.int16), np.ones(300_000, np.int16)
    at_work = host_exchange._exchanged

    def interrupted(memory: np.ndarray, places: np.ndarray, brought: np.ndarray) -> None:
        at_work(memory, places[:1], brought[:1])
        signal.raise_signal(signal.SIGINT)
        at_work(memory, places[1:], brought[1:])

    monkeypatch.setattr(host_exchange, "_exchanged", interrupted)
    exchange = exchange_of(served.ctypes.data + 2 * np.arange(len(served)), values)
    with pytest.raises(KeyboardInterrupt):
        uninterrupted(exchange.exchange)
    assert served.all()
    assert not values.any()


def test_given_devices_then_elements_are_exchanged_on_the_host_and_where_kernels_of_triton_run() -> None:
    assert why_no_exchange(torch.device("cpu")) == ""
    assert why_no_exchange(torch.device("meta")).startswith("elements are exchanged on meta by kernels of Triton")
