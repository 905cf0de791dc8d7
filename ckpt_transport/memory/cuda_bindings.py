"""CUDA's own functions, where the package that has them for Python is installed."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from ckpt_transport.errors import RegistrationError


@cache
def cuda_bindings(part: str) -> Any:
    """The functions of the CUDA ``driver`` or ``runtime``; Any, because their stubs are made by a generator.

    Raises:
        RegistrationError: cuda-bindings is missing.
    """
    try:
        return importlib.import_module(f"cuda.bindings.{part}")
    except ImportError as error:
        raise RegistrationError(f"cuda-bindings is missing ({error}); pip install ckpt-transport[cuda]") from error
