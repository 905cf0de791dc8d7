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


def call_driver(name: str, *arguments: Any) -> Any:
    """Make one call of the CUDA driver, and return what it returns.

    Raises:
        RegistrationError: it failed; names the call and CUDA's reason.
    """
    driver = cuda_bindings("driver")
    status, *results = getattr(driver, name)(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RegistrationError(f"{name}: {status.name}")
    if not results:
        return None
    return results[0] if len(results) == 1 else results
