"""Holds two versions that a source makes of a trainer's BF16 weights, FP8 with a scale for each block."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from benchmarks._versions import Versions, draw, flip, placed
from ckpt_transport import dtypes
from ckpt_transport.checkpoint import Loan
from ckpt_transport.memory import Buffer
from ckpt_transport.planning import TensorSpec
from ckpt_transport_fp8 import Target, quantized
from ckpt_transport_fp8.config import parse
from tests.vllm.fp8_checkpoints import CONFIGS

MODE = "block"
SLOT_BYTES = 64 << 20


class Fp8Versions(Versions):
    """Two versions of FP8 and scales. Of the BF16 weights there is one copy, which is changed and changed back.

    Args:
        specs: the BF16 tensors.
        device: where all are.
    """

    wanted = False

    def __init__(self, specs: Sequence[TensorSpec], device: torch.device) -> None:
        places, nbytes = placed(specs)
        self._raw = torch.zeros(nbytes, dtype=torch.uint8, device=device)
        draw(self._raw)
        self._weights = {
            each.spec.name: dtypes.as_tensor(
                self._raw[each.offset : each.offset + each.nbytes], each.spec.dtype, each.spec.shape
            )
            for each in places
        }
        kept = ["lm_head", *(spec.name.removesuffix(".weight") for spec in specs if ".mlp.gate." in spec.name)]
        config = {"quantization_config": CONFIGS[MODE] | {"modules_to_not_convert": kept}}
        self._target = Target("the engine", parse(config, "its configuration"))
        loan = quantized(self._weights, self._target)
        assert loan.backing is not None
        super().__init__(loan.tensors, loan.backing.nbytes, device)
        _fill(loan, self.base)

    def change(self, share: float) -> None:
        flip(self._raw, share)
        self._convert()
        self.conversion = self._convert()
        flip(self._raw, share)

    def _convert(self) -> float:
        began = time.perf_counter()
        _fill(quantized(self._weights, self._target), self.new)
        return time.perf_counter() - began


def _fill(loan: Loan, to: Buffer) -> None:
    assert loan.backing is not None
    for offset in range(0, loan.backing.nbytes, SLOT_BYTES):
        loan.backing.fill(to.tensor[offset : offset + SLOT_BYTES], offset)
    if to.tensor.is_cuda:
        torch.cuda.synchronize(to.tensor.device)
