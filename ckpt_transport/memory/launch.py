"""Kernels that were compiled once are launched without what Triton does to find them."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any


@cache
def has_kernels() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


class Launch:
    """A kernel with its constants.

    The first launch compiles. Later ones go to what was compiled, and skip what Triton does to find which compilation
    fits the arguments: most of the time that a launch takes. So arguments have the same types and device each time, and
    nothing of the kernel is specialized on their values (``do_not_specialize``).

    Args:
        kernel: a function with ``triton.jit``, whose constants are its last parameters.
        warps: of a program.
        constants: all of them, in the order of the parameters.
    """

    def __init__(self, kernel: Any, warps: int, **constants: object) -> None:
        self._kernel, self._warps, self._constants = kernel, warps, constants
        self.compiled: Any = None
        """What Triton made at the first launch."""

    def __call__(self, programs: int, *arguments: object) -> None:
        """Enqueue so many programs on the current stream of the current device, on which the arguments are."""
        grid = (programs, 1, 1)
        if self.compiled is None:
            self.compiled = self._kernel[grid](*arguments, **self._constants, num_warps=self._warps)
        else:
            self.compiled[grid](*arguments, *self._constants.values())
