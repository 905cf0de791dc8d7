"""Kernels find and encode what differs as a host does, byte for byte."""

from __future__ import annotations

import itertools

import pytest
import torch

from ckpt_transport.deltas import UNIT_DTYPES, encode
from ckpt_transport.deltas.device_encoding import STEP_BYTES, encode_by_kernels
from ckpt_transport.deltas.sections import BLOCK_UNITS


@pytest.mark.parametrize("unit", UNIT_DTYPES)
@pytest.mark.parametrize("shift", [0, 1])
def test_given_ranges_of_every_density_and_odd_sizes_then_kernels_encode_them_as_the_host_does(
    unit: int, shift: int
) -> None:
    base, new = [], []
    for share, units in itertools.product([0.0, 0.01, 0.3, 1.0], [0, 1, STEP_BYTES + 3, BLOCK_UNITS, BLOCK_UNITS + 77]):
        old = torch.randint(0, 256, (unit * (shift + units),), dtype=torch.uint8)[unit * shift :]
        now = old.clone()
        now.view(units, unit)[torch.rand(units) < share, unit - 1] ^= 0x80
        base.append(old)
        new.append(now)
    found = encode_by_kernels(base, new, unit, 1 << 40)
    assert found is not None
    for old, now, encoded in zip(base, new, found, strict=True):
        expected = encode(old, now, unit)
        assert (encoded.form, encoded.count) == (expected.form, expected.count)
        assert torch.equal(encoded.raw, expected.raw)


def test_given_more_than_may_be_carried_then_kernels_count_it_and_write_nothing() -> None:
    base = torch.zeros(1000, dtype=torch.uint8)
    assert encode_by_kernels([base, base], [base, base + 1], 1, 999) is None
    assert encode_by_kernels([base, base], [base, base + 1], 1, 1000) is not None
