"""Registers the native engine with vLLM, in every process that vLLM starts, and imports nothing before it is used."""

from __future__ import annotations

BACKEND = "ckpt_transport"
UPDATE = "weight update"
"""What is noted at a sink between vLLM's ``start_weight_update`` and ``finish_weight_update``."""


def register() -> None:
    """The entry point in ``vllm.general_plugins``. Without effect on a vLLM that has no weight transfer engines."""
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    except ImportError:
        return
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "ckpt_transport_vllm.native", "NativeEngine")
