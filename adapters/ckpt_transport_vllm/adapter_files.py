"""An adapter's files, as PEFT saves them and vLLM loads them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ckpt_transport import CheckpointError

_FACTOR = re.compile(r"(?P<module>.*\.lora_(?:embedding_)?[AB])\.(?P<adapter>[^.]+)(?P<kind>\.weight)?")


def factors_of(tensors: object, adapter: str) -> dict[str, torch.Tensor]:
    """The factors of one adapter among a model's tensors, under the names in its file; others are left out.

    Factors that are DTensors are gathered, so that all ranks must call.

    Args:
        tensors: ``state_dict()`` of a model of PEFT.
        adapter: its name there.

    Raises:
        CheckpointError: there are none; names those adapters that there are. Or one is no tensor.
    """
    if not isinstance(tensors, Mapping):
        raise CheckpointError("an adapter is brought alone out of state_dict() of PEFT's model; give that")
    found: dict[str, torch.Tensor] = {}
    others: dict[str, None] = {}
    for name, tensor in tensors.items():
        match = _FACTOR.fullmatch(name)
        if match is None:
            continue
        if match["adapter"] == adapter:
            if not isinstance(tensor, torch.Tensor):
                raise CheckpointError(f"'{name}' is {type(tensor).__name__}, and factors are brought alone as tensors")
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            found[f"{match['module']}{match['kind'] or ''}"] = whole.detach().cpu().contiguous()
        else:
            others[match["adapter"]] = None
    if not found:
        there = ", ".join(f"'{other}'" for other in others) or "none"
        raise CheckpointError(
            f"there is no factor of an adapter '{adapter}'; adapters that have some: {there}; give state_dict() of "
            "PEFT's model"
        )
    return found


def save_adapter(folder: Path, factors: Mapping[str, torch.Tensor], settings: Any) -> None:
    """Write an adapter, all of it or nothing.

    Args:
        folder: where to; it must not exist.
        factors: see :func:`factors_of`.
        settings: its LoraConfig of PEFT, or what ``to_dict()`` of that returns.
    """
    values = dict(settings if isinstance(settings, Mapping) else settings.to_dict())
    part = folder.with_name(f".{folder.name}.part")
    part.mkdir(parents=True)
    save_file(dict(factors), part / "adapter_model.safetensors")
    (part / "adapter_config.json").write_text(json.dumps(values, default=_plain), encoding="utf-8")
    part.rename(folder)


def _plain(value: object) -> object:
    if isinstance(value, set | frozenset | tuple):
        return sorted(value)
    return value.value if isinstance(value, Enum) else str(value)
