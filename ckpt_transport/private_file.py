"""Secrets come from files that only their owner can read, never from arguments, which everybody on a host sees."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from ckpt_transport.errors import ConfigError
from ckpt_transport.paths import without_nul

MAX_BYTES = 64 << 10
"""No secret is longer."""


class Stamp(NamedTuple):
    """Differs between two states of a file."""

    device: int
    inode: int
    changed: int
    nbytes: int


def read_private(path: Path, setting: str) -> bytes:
    """Read a secret, without the white space around it.

    Args:
        path: of the file.
        setting: which setting names it, for errors.

    Raises:
        ConfigError: it is no file, or other users can read it; names it, says the cure, and nothing of what it holds.
    """
    try:
        descriptor = os.open(without_nul(path, ConfigError), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{setting} {path} is no regular file; name a file that holds the secret")
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                mode = stat.S_IMODE(status.st_mode)
                raise ConfigError(f"{setting} {path} can be read or changed by others (mode {mode:o}); chmod 600 it")
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{setting} {path}: {error.strerror or error}; name a file that this user can read"
        ) from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{setting} {path} has more than {MAX_BYTES} bytes; name a file that holds nothing else")
    return content.strip()


def stamp_of(path: Path) -> Stamp | None:
    """What tells this state of a file from others; None while there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size)
