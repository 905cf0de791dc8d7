"""Given a tensor of more than 4 GiB on a host, then each of its bytes arrives where it belongs.

A trainer's zeros take no memory until something else is written to them, so that only the engine's take as much.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from ckpt_transport import Config, ParameterServer, Sink
from ckpt_transport_torch.engine import TorchEngine
from tests.patience import PATIENT

NBYTES = (4 << 30) + (1 << 20) + 1
SPARE = 1 << 30
MARKS = (0, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, NBYTES - 1)
"""Where bytes are not zero: at both ends, and where numbers of 31 and of 32 bits end."""


class Large(torch.nn.Module):
    """Holds one tensor, of an odd number of bytes, beside a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("large", torch.zeros(NBYTES, dtype=torch.uint8))
        self.register_buffer("small", torch.zeros(3))


@pytest.mark.parametrize("settings", [{"transport": "shm"}, {"transport": "gloo"}], ids=str)
def test_given_a_tensor_of_more_than_4_gib_when_it_is_lent_then_all_of_it_arrives(settings: dict[str, Any]) -> None:
    available = psutil.virtual_memory().available
    if available < NBYTES + SPARE:
        pytest.skip(f"needs {NBYTES + SPARE:,} bytes of memory, and {available:,} are available")
    module, config = Large(), Config.load(**{**PATIENT, **settings})
    tensors = {"large": torch.zeros(NBYTES, dtype=torch.uint8), "small": torch.ones(3)}
    for number, mark in enumerate(MARKS):
        tensors["large"][mark] = 1 + number
    with closing(Sink(TorchEngine(module), config=config)) as sink, ParameterServer(config) as server:
        report = server.publish("v1", tensors, [sink.start().address])
        assert report is not None
        assert report.transports == (settings["transport"],)
    found = module.large.numpy()  # type: ignore[operator]
    assert np.flatnonzero(found).tolist() == list(MARKS)
    assert found[list(MARKS)].tolist() == [1 + number for number in range(len(MARKS))]
    assert torch.equal(module.small, tensors["small"])  # type: ignore[arg-type]
