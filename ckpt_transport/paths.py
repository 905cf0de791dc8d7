"""Paths that come from outside."""

from __future__ import annotations

from pathlib import Path

from ckpt_transport.errors import CkptTransportError


def without_nul(path: Path, error: type[CkptTransportError]) -> Path:
    """``path``, which may be that of a file.

    Raises:
        CkptTransportError: an ``error``, where it has a NUL character in it, as no path of a file has.
    """
    if "\0" in str(path):
        raise error(f"{str(path)!r} has a NUL character in it, and no file is called so; give another path")
    return path
