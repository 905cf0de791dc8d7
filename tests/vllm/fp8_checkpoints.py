"""Tiny FP8 checkpoints, made from BF16 ones, in the ways that they come in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ckpt_transport import dtypes
from ckpt_transport_fp8 import Target, quantized
from ckpt_transport_fp8.config import parse

FILE = "model.safetensors"
KEPT = ["lm_head", *(f"model.layers.{layer}.mlp.gate" for layer in range(2))]


def _compressed(strategy: str) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, "dynamic": False}
    activations = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*mlp.gate$"],
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "block": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": KEPT,
    },
    "tensor": {"quant_method": "fp8", "activation_scheme": "dynamic", "ignored_layers": KEPT},
    "static": {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": KEPT},
    "channel": _compressed("channel"),
}
"""``quantization_config`` by the name of a mode."""


def write_quantized(source: Path, directory: Path, mode: str) -> Path:
    """Write the BF16 checkpoint in ``source`` as FP8 into ``directory``.

    Where activations have static scales it has those, and scales of the cache of keys and values as well; both are made
    up from the weights, so that two checkpoints differ in them too.
    """
    shutil.copytree(source, directory)
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": CONFIGS[mode]}
    (directory / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / FILE)
    if mode == "static":
        tensors |= _made_up(tensors)
    loan = quantized(tensors, Target(str(directory), parse(config, str(directory))), torch.device("cpu"))
    assert loan.backing is not None
    whole = torch.empty(loan.backing.nbytes, dtype=torch.uint8)
    loan.backing.fill(whole, 0)
    made = {
        place.spec.name: dtypes.as_tensor(
            whole[place.offset : place.offset + place.nbytes], place.spec.dtype, place.spec.shape
        ).clone()
        for place in loan.tensors
    }
    save_file(made, directory / FILE, metadata={"format": "pt"})
    return directory


def _made_up(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    scales: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if module.endswith("_proj"):
            scales[f"{module}.input_scale"] = tensor.float().abs().mean() / 4
        for which in ("k", "v"):
            if module.endswith(f"{which}_proj"):
                scales[f"{module}.{which}_scale"] = tensor.float().abs().mean()
    return scales


def spoil(directory: Path, spoiled: Path, shape: tuple[int, ...] | None) -> str:
    """Copy a checkpoint without one of its scales, or with one of ``shape``; return the name of that scale."""
    shutil.copytree(directory, spoiled)
    tensors = load_file(directory / FILE)
    name = max(name for name in tensors if name.endswith(("weight_scale", "weight_scale_inv")))
    del tensors[name]
    if shape is not None:
        tensors[name] = torch.ones(shape)
    save_file(tensors, spoiled / FILE, metadata={"format": "pt"})
    return name
