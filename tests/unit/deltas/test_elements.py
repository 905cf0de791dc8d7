"""Elements that several sources bring: each is exchanged once."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport.deltas import Elements, each_once
from ckpt_transport.errors import DeltaRefusedError


def of(places: list[int], values: list[int], dtype: torch.dtype = torch.int16) -> Elements:
    return Elements(torch.tensor(places), torch.tensor(values, dtype=dtype))


def test_given_replicas_that_say_the_same_then_each_element_is_there_once() -> None:
    found = each_once({2: of([100, 104, 200, 100, 106], [1, -2, 3, 1, 4])})
    assert {unit: (each.addresses.tolist(), each.values.tolist()) for unit, each in found.items()} == {
        2: ([100, 104, 106, 200], [1, -2, 4, 3])
    }


def test_given_wide_elements_and_parts_of_them_then_all_become_parts() -> None:
    wide = of([100], [0x00020001], torch.int32)
    (unit, found), *others = each_once({4: wide, 2: of([102, 104], [2, 3])}).items()
    assert not others
    assert (unit, found.addresses.tolist(), found.values.tolist()) == (2, [100, 102, 104], [1, 2, 3])


def test_given_different_values_of_one_element_then_the_delta_is_refused() -> None:
    with pytest.raises(DeltaRefusedError, match="different values of one element"):
        each_once({2: of([100, 100], [1, 2])})


def test_given_no_elements_then_there_are_none() -> None:
    assert each_once({}) == {}
    assert each_once({2: of([], [])}) == {}
