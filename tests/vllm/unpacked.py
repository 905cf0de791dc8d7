"""A worker extension for a vLLM like one that was built without oneDNN: weights stay where kernels read them."""

from __future__ import annotations

from vllm import _custom_ops

from ckpt_transport_vllm import WorkerExtension

_custom_ops._supports_onednn = False


class UnpackedExtension(WorkerExtension):
    """Ours; vLLM imports it before it makes the model."""
