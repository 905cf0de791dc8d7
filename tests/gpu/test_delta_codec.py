"""A GPU finds, decodes and exchanges what differs as the host does."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport.deltas import UNIT_DTYPES, ElementExchange, decode, encode
from ckpt_transport.deltas.sections import BLOCK_UNITS
from ckpt_transport.deltas.torch_encoding import encode_by_torch
from ckpt_transport.memory.launch import has_kernels

pytestmark = pytest.mark.skipif(not has_kernels(), reason="needs Triton")
GPU = torch.device("cuda", 0)
UNITS = 5 * BLOCK_UNITS + 77


@pytest.mark.parametrize("unit", UNIT_DTYPES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("start", [0, 1])
def test_given_two_versions_on_a_gpu_when_their_delta_is_exchanged_twice_then_bytes_are_those_of_each(
    unit: int, share: float, start: int
) -> None:
    base = torch.randint(0, 256, (unit * (start + UNITS),), dtype=torch.uint8)[unit * start :]
    new = base.clone()
    new.view(UNITS, unit)[torch.rand(UNITS) < share, unit - 1] ^= 0x80
    old, now = (torch.cat([each[: unit * start], each]).to(GPU)[unit * start :] for each in (base, new))
    expected, encoded = encode(base, new, unit), encode(old, now, unit)
    for made in (encoded, encode_by_torch(old, now, unit)):
        assert (made.form, made.count) == (expected.form, expected.count)
        assert torch.equal(made.raw.cpu(), expected.raw)
    places, values = decode(encoded.raw, encoded.form, unit, unit * UNITS, encoded.count)
    there = decode(expected.raw, expected.form, unit, unit * UNITS, expected.count)
    assert torch.equal(places.cpu(), there.places)
    assert torch.equal(values.cpu(), there.values)
    exchange = ElementExchange(old.data_ptr() + unit * places, values, unit, GPU)
    exchange.run()
    assert torch.equal(old, now)
    exchange.run()
    assert torch.equal(old.cpu(), base)
