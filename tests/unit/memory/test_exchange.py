"""The bytes of pairs of tensors change places, all of them."""

from __future__ import annotations

import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.memory import exchange as exchange_module
from ckpt_transport.memory.exchange import CHUNK_BYTES, ByteExchange


@given(sizes=st.lists(st.integers(0, 3 * CHUNK_BYTES), max_size=6), seed=st.integers(0, 99))
def test_given_pairs_of_any_sizes_then_each_holds_what_the_other_held(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    pairs = [(torch.randint(256, (n,), dtype=torch.uint8), torch.randint(256, (n,), dtype=torch.uint8)) for n in sizes]
    before = [(one.clone(), other.clone()) for one, other in pairs]
    exchange = ByteExchange(pairs)
    exchange.run()
    assert all(torch.equal(a, d) and torch.equal(b, c) for (a, b), (c, d) in zip(pairs, before, strict=True))
    exchange.run()
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(pairs, before, strict=True))


def test_given_an_interrupt_while_bytes_change_places_then_all_have_when_it_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = torch.zeros(9 * CHUNK_BYTES, dtype=torch.uint8), torch.ones(9 * CHUNK_BYTES, dtype=torch.uint8)
    at_work = exchange_module._exchange_on_host

    def interrupted(chunks: list[exchange_module.Pair]) -> None:
        at_work(chunks[:1])
        signal.raise_signal(signal.SIGINT)
        at_work(chunks[1:])

    monkeypatch.setattr(exchange_module, "_exchange_on_host", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ByteExchange([(one, other)]).run()
    assert one.all()
    assert not other.any()
