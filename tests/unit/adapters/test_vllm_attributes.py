"""Two copies of a module exchange what they keep beside tensors, where nothing could hold on to what it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ckpt_transport_vllm.attributes import Attributes, exchange


class Method:
    """A quantization method."""

    def __init__(self) -> None:
        self.scale, self.kernel = 1.0, object()


def packed(version: int) -> Any:
    """A layer as vLLM has it on a CPU, where a function computes with weights that were packed elsewhere."""
    module: Any = torch.nn.Linear(2, 2)
    module.quant_method = Method()
    module.cpu_linear = lambda: version
    return module


def test_given_two_copies_when_they_exchange_then_each_has_what_the_other_had_and_the_second_time_its_own() -> None:
    served = packed(1)
    shadow = copy.copy(served)
    shadow.quant_method = copy.copy(served.quant_method)
    shadow.cpu_linear = lambda: 2
    shadow.quant_method.scale, shadow.only_here = 2.0, True
    weight = served.weight
    for version, has in ((2, True), (1, False)):
        exchange(served, shadow)
        assert (served.cpu_linear(), shadow.cpu_linear()) == (version, 3 - version)
        assert served.quant_method.scale == version
        assert (hasattr(served, "only_here"), hasattr(shadow, "only_here")) == (has, not has)
        assert served.weight is weight


def test_given_processing_that_makes_a_function_and_numbers_then_these_can_be_exchanged() -> None:
    module = packed(1)
    before = Attributes(module)
    assert before.why_not_exchanged() == ""
    module.cpu_linear, module.quant_method.scale, module.done = (lambda: 2), 2.0, True
    assert before.why_not_exchanged() == ""


@pytest.mark.parametrize("owner", ["module", "method"])
@pytest.mark.parametrize("kind", ["tensor", "object", "function of the module"])
def test_given_processing_that_makes_what_others_may_hold_then_it_is_named(owner: str, kind: str) -> None:
    module = packed(1)
    before = Attributes(module)
    made = {"tensor": torch.zeros(1), "object": object(), "function of the module": lambda: module.weight}[kind]
    (module if owner == "module" else module.quant_method).kernel = made
    assert before.why_not_exchanged() == "its processing makes kernel"
