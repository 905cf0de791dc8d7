"""Pairs of tensors are exchanged by one launch, and back."""

from __future__ import annotations

import torch

from ckpt_transport.memory.exchange import exchange_by_table

HOST = torch.device("cpu")


def test_given_pairs_of_odd_lengths_when_they_are_exchanged_twice_then_all_is_as_it_was() -> None:
    sizes = [1, 7, 64, 333, 1000]
    ones, others = ([torch.randint(0, 256, (n,), dtype=torch.uint8) for n in sizes] for _ in range(2))
    before = [each.clone() for each in ones], [each.clone() for each in others]
    enqueue = exchange_by_table(HOST, list(zip(ones, others, strict=True)))
    enqueue()
    assert all(map(torch.equal, ones, before[1]))
    assert all(map(torch.equal, others, before[0]))
    enqueue()
    assert all(map(torch.equal, ones, before[0]))
    assert all(map(torch.equal, others, before[1]))
