"""Deltas are decoded, located and exchanged on the GPU on which a module is served."""

from __future__ import annotations

import torch

from ckpt_transport.deltas import why_no_exchange
from ckpt_transport.engine import digest_of_served
from ckpt_transport_torch import TorchEngine
from tests.deltas import delta_of, exchanged, staged


def test_given_a_module_on_a_gpu_when_a_delta_is_exchanged_twice_then_both_versions_are_served_in_turn() -> None:
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(512, 384), torch.nn.Linear(384, 96)).to("cuda", torch.bfloat16)
    assert why_no_exchange(torch.device("cuda")) == ""
    old = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
    new = {name: tensor.clone() for name, tensor in old.items()}
    for tensor in new.values():
        tensor.view(-1).view(torch.int16)[::37] ^= 1
    engine = TorchEngine(module)
    taking = staged(engine, *delta_of("v1", old, new))
    exchanged(taking)
    assert all(torch.equal(tensor.cpu(), new[name]) for name, tensor in module.state_dict().items())
    engine.begin()
    taking.digest_left = digest_of_served(module.state_dict())
    taking.restore()
    exchanged(taking)
    assert all(torch.equal(tensor.cpu(), old[name]) for name, tensor in module.state_dict().items())
