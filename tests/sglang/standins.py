"""Stand-ins for what SGLang needs and no registry has for a CPU without AMX. Test support: nothing of it is installed.

SGLang's compiled kernels, ``sgl_kernel``, are for CUDA, and so are torchvision's operators. On a CPU without AMX,
SGLang computes by torch and calls none of them, but it imports all of them. Here every name of ``sgl_kernel`` exists
and raises when it is called, and torchvision's operators are declared and have no kernel. Import this before sglang, in
every process. Where there is a GPU, nothing is stood in for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

OPERATORS = ("nms", "qnms", "roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "qroi_align")
MAKERS = ("tensor", "empty", "zeros")
GRADIENTS = ("_roi_align_backward", "_ps_roi_align_backward", "_roi_pool_backward", "_ps_roi_pool_backward")


class MissingKernels(ModuleType):
    """Has every function that it is asked for; calling one fails with its name."""

    __version__ = "0.4.10"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: object, **__: object) -> None:
            raise NotImplementedError(f"sgl_kernel.{name} is a compiled kernel, which this machine has not")

        return missing


def stays(tensor: torch.Tensor) -> torch.Tensor:
    """In the place of ``Tensor.pin_memory``, which asks for a GPU."""
    return tensor


def unpinned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Makes a tensor for copies to a GPU where there is none, as SGLang's layers for LoRA adapters do."""

    def made(*given: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return make(*given, **options)

    return made


declared = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
if not torch.cuda.is_available():
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    sys.modules.setdefault("sgl_kernel", MissingKernels("sgl_kernel"))
    torch.Tensor.pin_memory = stays  # type: ignore[assignment,method-assign]
    for name in MAKERS:
        setattr(torch, name, unpinned(getattr(torch, name)))
    for name in (*OPERATORS, *GRADIENTS):
        declared.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")  # type: ignore[no-untyped-call]
