"""Engines that serve the same have the same digest."""

from __future__ import annotations

import torch

from ckpt_transport import ask_version
from ckpt_transport.engine import digest_of_served
from ckpt_transport_torch import attach


def convolution(seed: int) -> torch.nn.Module:
    module = torch.nn.Conv2d(3, 4, 5)
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return module


def test_given_two_engines_whose_weights_lie_in_other_orders_then_they_have_one_digest() -> None:
    """Given a convolution in channels_last, then it is that of one that is not, and other weights have another."""
    one, other = convolution(1), convolution(1)
    weight = other.get_parameter("weight")
    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    with attach(one) as first, attach(other) as second, attach(convolution(5)) as third:
        same, too, differs = (ask_version(each.address, digest=True).digest for each in (first, second, third))
    assert same == too != differs


def test_given_a_transpose_then_it_has_the_digest_of_its_clone_and_not_that_of_what_it_is_a_transpose_of() -> None:
    square = torch.randn(4, 4)
    clone = digest_of_served({"weight": square.t().clone(memory_format=torch.contiguous_format)})
    assert digest_of_served({"weight": square.t()}) == clone != digest_of_served({"weight": square})
