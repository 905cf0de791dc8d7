"""A GPU finds and exchanges what differs as the host does."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport.deltas import UNIT_DTYPES, DeviceExchange, Elements, encode, exchange_each
from ckpt_transport.deltas.sections import BLOCK_UNITS
from ckpt_transport.deltas.torch_encoding import encode_by_torch
from ckpt_transport.memory.launch import has_kernels
from tests.carried import elements_of

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
    places, values = elements_of(expected.raw, expected.form, unit, unit * UNITS, expected.count)
    addresses = torch.from_numpy(places).to(GPU) * unit + old.data_ptr()
    exchange = DeviceExchange(Elements(addresses, torch.from_numpy(values.view(f"i{unit}")).to(GPU)))
    exchange_each([exchange], GPU)
    assert torch.equal(old, now)
    exchange_each([exchange], GPU)
    assert torch.equal(old.cpu(), base)
