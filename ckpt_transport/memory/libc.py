"""The C library of this process."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


@cache
def libc() -> Any:
    """Any, because a library's functions are known when it is loaded. ``ctypes.get_errno()`` says why a call failed."""
    loaded = ctypes.CDLL(None, use_errno=True)
    loaded.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    loaded.process_vm_readv.restype = ctypes.c_ssize_t
    loaded.process_vm_readv.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    )
    return loaded
