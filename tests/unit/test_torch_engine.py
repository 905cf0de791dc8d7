"""Given a module, what of it an update brings."""

from __future__ import annotations

import torch

from ckpt_transport.planning import TensorSpec
from ckpt_transport_torch.engine import TorchEngine


class Remembers(torch.nn.Linear):
    """Keeps something in its state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        raise AssertionError("an update brings tensors")


def test_what_is_no_tensor_is_not_expected() -> None:
    engine = TorchEngine(torch.nn.Sequential(Remembers(2, 3, bias=False)))
    assert engine.expects() == (TensorSpec("0.weight", "F32", (3, 2)),)
