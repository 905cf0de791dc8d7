"""Links of the GPUs that the tests run on are measured."""

from __future__ import annotations

import torch

from ckpt_transport.memory import visible_devices
from ckpt_transport.rates import LinkKind, measure

PROBE_LIMIT_BYTES = 1 << 20
"""Memory that stays behind on a GPU is less than that."""


def test_given_gpus_then_their_links_have_rates_and_those_within_a_gpu_are_fastest() -> None:
    torch.zeros(1, device="cuda")
    before = torch.cuda.memory_allocated()
    rates = measure(lambda *_: None)
    assert torch.cuda.memory_allocated() - before < PROBE_LIMIT_BYTES
    for gpu in visible_devices():
        within = rates.rate(LinkKind.DEVICE, gpu, gpu)
        assert within > rates.rate(LinkKind.TO_DEVICE, target=gpu) > 1e9
        assert within > rates.rate(LinkKind.FROM_DEVICE, source=gpu) > 1e9


def test_given_gpus_that_map_each_others_memory_then_each_pair_has_a_rate_in_both_directions() -> None:
    rates = measure(lambda *_: None)
    peers = {(each.link.source, each.link.target) for each in rates.links if each.link.kind is LinkKind.PEER}
    assert peers == {
        (rates_source, rates_target)
        for source, rates_source in enumerate(_by_index())
        for target, rates_target in enumerate(_by_index())
        if source != target and torch.cuda.can_device_access_peer(target, source)
    }
    assert all(rates.rate(LinkKind.PEER, *pair) > 1e9 for pair in peers)


def _by_index() -> list[str]:
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]
