"""Attention that a version brings nothing for gets what vLLM's reload would give it, without a reload.

vLLM processes attention after all other layers: it has default scales, unless it calculates them, and some kinds of it
derive tensors of weights of others. Its own tensors come back as they were where nothing of them was loaded, so they
need not be taken away for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ckpt_transport_vllm.graph_tensors import GraphTensors
from ckpt_transport_vllm.layerwise import finishing, forget_attention_scales, waits_for_the_end
from ckpt_transport_vllm.updated_model import UpdatedModel


def process_unloaded(target: UpdatedModel, attention: Sequence[torch.nn.Module]) -> None:
    """Have vLLM process these modules of attention, when all other layers have their weights.

    Tensors that they derive anew are brought to where kernels and CUDA graphs look for them.
    """
    graph_tensors = GraphTensors(attention, waits_for_the_end)
    try:
        with finishing(target):
            forget_attention_scales(target, attention)
            for module in attention:
                own: Any = module
                own.process_weights_after_loading(target.model_config.dtype)
    finally:
        graph_tensors.bring_back()
