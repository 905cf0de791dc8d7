"""Kernels find and encode what differs as a host does, byte for byte."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport.deltas import UNIT_DTYPES, encode
from ckpt_transport.deltas.device_encoding import STEP, encode_by_kernels
from ckpt_transport.deltas.sections import BLOCK_UNITS

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("unit", UNIT_DTYPES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("units", [0, 1, STEP + 3, BLOCK_UNITS + 77])
def test_given_two_versions_then_kernels_encode_them_as_the_host_does(unit: int, share: float, units: int) -> None:
    base = torch.randint(0, 256, (unit * units,), dtype=torch.uint8)
    new = base.clone()
    new.view(units, unit)[torch.rand(units) < share, unit - 1] ^= 0x80
    expected, encoded = encode(base, new, unit), encode_by_kernels(base, new, unit)
    assert (encoded.form, encoded.count) == (expected.form, expected.count)
    assert torch.equal(encoded.raw, expected.raw)
