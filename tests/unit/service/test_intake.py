"""Who publishes a step has it lent or copied, whichever ends sooner."""

from __future__ import annotations

import pytest
import torch

from ckpt_transport.rates import HostLink, HostRates, LinkKind, LinkRate
from ckpt_transport.service.intake import choose_intake

ON_HOST = [torch.zeros(1000), torch.zeros(3, 4)]
NOT_LENDABLE = [
    pytest.param(torch.zeros(4, 6).t(), id="strided"),
    pytest.param(torch.zeros(3, dtype=torch.complex64).conj(), id="conjugate"),
    pytest.param(torch.eye(3).to_sparse(), id="sparse"),
]


def rates(**known: float) -> HostRates:
    return HostRates(tuple(LinkRate(HostLink(LinkKind[name.upper()]), rate) for name, rate in known.items()))


def test_given_host_memory_and_sinks_of_this_host_then_it_is_registered_whatever_the_rate_of_memory() -> None:
    """Both copies use the same memory, and take as long one way as the other."""
    for known in (None, rates(memory=1e9), rates(memory=100e9)):
        intake = choose_intake(ON_HOST, near=True, rates=known)
        assert not intake.lend
        assert intake.why.startswith("registered, in about")


def test_given_sinks_that_a_network_leads_to_then_host_memory_is_lent() -> None:
    """Buckets are gathered while others are on their way."""
    intake = choose_intake(ON_HOST, near=False, rates=rates(memory=4048.0, network=1012.0))
    assert intake.lend
    assert intake.why == "lent, in about 4 s by the cost model; to register a copy and send that takes 5 s"


@pytest.mark.parametrize("tensor", NOT_LENDABLE)
@pytest.mark.parametrize("near", [True, False])
def test_given_a_tensor_whose_bytes_lie_apart_then_all_are_registered(tensor: torch.Tensor, near: bool) -> None:
    intake = choose_intake([*ON_HOST, tensor], near=near, rates=None)
    assert not intake.lend
    assert "not contiguous" in intake.why


def test_given_nothing_then_it_is_registered() -> None:
    assert not choose_intake([], near=True, rates=None).lend
