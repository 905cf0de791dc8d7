"""Who publishes a step has it lent where it can be, and copied elsewhere."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from ckpt_transport.service.intake import Intakes, choose_intake
from tests.looks import Looks

ON_HOST = [torch.zeros(1000), torch.zeros(3, 4)]
NOT_LENDABLE = [
    pytest.param(torch.zeros(4, 6).t(), id="strided"),
    pytest.param(torch.zeros(3, dtype=torch.complex64).conj(), id="conjugate"),
    pytest.param(torch.eye(3).to_sparse(), id="sparse"),
]


def test_given_runs_of_memory_then_they_are_lent() -> None:
    intake = choose_intake(ON_HOST)
    assert intake.lend
    assert intake.why == "lent, because its tensors can be sent from where they lie"


@pytest.mark.parametrize("tensor", NOT_LENDABLE)
def test_given_a_tensor_whose_bytes_lie_apart_then_all_are_registered(tensor: torch.Tensor) -> None:
    intake = choose_intake([*ON_HOST, tensor])
    assert not intake.lend
    assert "not contiguous" in intake.why


def test_given_nothing_then_it_is_registered() -> None:
    assert not choose_intake([]).lend


def test_given_tensors_like_those_of_the_step_before_then_each_is_only_asked_whether_it_is_nested() -> None:
    intakes = Intakes()
    for _ in range(2):
        weights = {f"t{number}": torch.ones(5) for number in range(1000)}
        with Looks() as looks:
            assert intakes.of(weights, None).lend
    assert looks.of_each(1000) == Counter(is_nested=1)
    assert not intakes.of(weights | {"t0": torch.ones(3, 2).t()}, None).lend
    assert intakes.of(weights, None).lend
