"""A trainer's tensors are compared with a copy beside them, and nothing else of them is copied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ckpt_transport import Config, Mapping, ParameterServer, rules
from ckpt_transport_torch import attach
from tests.deltas import base_of
from tests.fleet import model, weights
from tests.leftovers import left_behind
from tests.patience import PATIENT

BESIDE = Config.load(**PATIENT, delta="on", commit="auto", delta_base="beside")


@contextmanager
def served(dtype: torch.dtype = torch.float32) -> Iterator[tuple[torch.nn.Module, str]]:
    module = model(1).to(dtype)
    with attach(module, version="v1", config=Config.load(**PATIENT)) as attachment:
        yield module, attachment.address


def holds(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, tensors[name].to(tensor.dtype)) for name, tensor in module.state_dict().items())


def trained(tensors: dict[str, torch.Tensor], step: int) -> None:
    """Change one element of each tensor where it lies, as an optimizer does."""
    for tensor in tensors.values():
        tensor.view(-1)[step % tensor.numel()] += 1.0


def test_given_tensors_that_are_trained_where_they_lie_then_each_step_is_served_and_none_is_copied_to_be_sent() -> None:
    already = len(left_behind())
    with served() as (module, address), ParameterServer(BESIDE) as server:
        tensors = weights(2)
        for step in range(5):
            trained(tensors, step)
            report = server.publish(f"step-{step}", tensors, [address])
            assert holds(module, tensors)
            assert base_of(report) == (f"step-{step - 1}" if step else "")
            assert report is not None
            assert "a copy of the version before" in report.intake
            assert len(left_behind()) - already <= 1, "only what carries the difference is in shared memory"


def test_given_weights_in_fp32_that_are_cast_on_the_way_then_what_has_changed_in_bf16_is_sent() -> None:
    to_bf16 = Mapping.of(rules.Cast("BF16"))
    with served(torch.bfloat16) as (module, address), ParameterServer(BESIDE) as server:
        tensors = weights(2)
        server.publish("step-0", tensors, [address], mapping=to_bf16)
        for tensor in tensors.values():
            tensor.view(-1)[1:] *= 1 + 1e-6  # which rounds to what it was in nearly all elements
            tensor.view(-1)[0] += 1.0
        report = server.publish("step-1", tensors, [address], mapping=to_bf16)
        assert base_of(report) == "step-0"
        assert holds(module, tensors)
        assert report is not None
        assert report.delta is not None
        assert report.delta.version_nbytes < sum(tensor.nbytes for tensor in tensors.values())


def test_given_somebody_who_writes_to_tensors_before_they_are_brought_then_what_they_were_is_no_base() -> None:
    with served() as (module, address), ParameterServer(BESIDE) as server:
        tensors = weights(2)
        server.publish("step-0", tensors, [address])
        trained(tensors, 0)
        sent = {name: tensor.clone() for name, tensor in tensors.items()}
        report = server.publish("step-1", tensors, [address], before_hold=lambda: trained(tensors, 1))
        assert base_of(report) == "step-0"
        assert holds(module, sent)
        assert base_of(server.publish("step-2", tensors, [address])) == ""
        assert holds(module, tensors)


def test_given_a_step_of_other_tensors_then_it_comes_whole_and_is_the_base_of_the_next() -> None:
    with served() as (module, address), ParameterServer(BESIDE) as server:
        server.publish("step-0", weights(2), [address])
        turned = dict(reversed(weights(3).items()))
        assert base_of(server.publish("step-1", turned, [address])) == ""
        trained(turned, 0)
        assert base_of(server.publish("step-2", turned, [address])) == "step-1"
        assert holds(module, turned)
