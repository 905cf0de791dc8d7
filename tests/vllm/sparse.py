"""A checkpoint of which few elements differ from another one."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def changed(directory: Path, to: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Write the same checkpoint with other bits in every fiftieth element; both, by name."""
    shutil.copytree(directory, to)
    (file,) = to.glob("*.safetensors")
    old = load_file(file)
    new = {name: tensor.clone() for name, tensor in old.items()}
    for tensor in new.values():
        tensor.view(-1).view(torch.int16)[::50] ^= 9
    save_file(new, file, {"format": "pt"})
    return old, new
