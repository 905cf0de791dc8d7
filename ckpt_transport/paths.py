"""Paths that come from outside."""

from __future__ import annotations

import os
from collections.abc import Iterable
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


def may_be_written(path: Path) -> bool:
    """Whether a file can be there, or a device such as /dev/null. A pipe cannot: who opens it waits for a reader."""
    return path.is_file() or path.is_char_device() or not path.exists()


def path_of(given: object, error: type[CkptTransportError]) -> Path:
    """The path that a caller has given, as text or as a path.

    Raises:
        CkptTransportError: an ``error``, where it is neither, or no file can be called so.
    """
    if not isinstance(given, str | os.PathLike):
        raise error(f"{given!r} is no path: give that of a file or a directory, as text or as a Path")
    return without_nul(Path(given), error)


def paths_of(given: object, error: type[CkptTransportError]) -> list[Path]:
    """The paths that a caller has given.

    Raises:
        CkptTransportError: an ``error``, where this is one path and no list, or something is no path.
    """
    if isinstance(given, str | os.PathLike) or not isinstance(given, Iterable):
        shown = str(given) if isinstance(given, os.PathLike) else given
        raise error(f"files are to be a list, also where there is one: give [{shown!r}] instead of {shown!r}")
    return [path_of(each, error) for each in given]
