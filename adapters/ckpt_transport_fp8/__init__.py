"""FP8 weights: BF16 checkpoints become FP8 on their way to engines that serve FP8; see docs/how-to/fp8-models.md."""

from ckpt_transport_fp8.source import quantized
from ckpt_transport_fp8.target import Target, read_target

__all__ = ["Target", "quantized", "read_target"]
