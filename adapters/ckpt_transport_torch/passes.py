"""Makes every call of a module a pass through a gate."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from ckpt_transport import Gate


def passes_through(module: torch.nn.Module, gate: Gate) -> Callable[[], None]:
    """Make every call of ``module(...)`` a pass through ``gate``; return what undoes it.

    The module's ``forward`` is replaced, and no hook is used: torch calls hooks after an exception, and not after an
    interrupt, which would leave the gate held.
    """
    forward = module.forward

    @wraps(forward)  # its signature is asked for, as by transformers' generate
    def gated(*args: Any, **kwargs: Any) -> Any:
        return gate.run(forward, *args, **kwargs)

    def undo() -> None:
        if module.__dict__.get("forward") is gated:
            module.forward = forward

    module.forward = gated
    return undo
