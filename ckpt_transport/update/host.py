"""Two processes are on one host if each can read the other's shared memory; this module names the host."""

from __future__ import annotations

import os
import re
import socket
from functools import cache
from pathlib import Path

from ckpt_transport.config import Config
from ckpt_transport.memory.segment import SHM

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MARKS_OF_MEMORY = re.compile(r"(/shm\d+)?/uid\d+\Z")


def host_name() -> str:
    """The host's name, with marks that differ for another boot, another ``/dev/shm`` (another container) and user.

    Users count because nobody else may read a segment: a root that could is apart from them, too.
    """
    marks = [socket.gethostname(), *_boot_marks()]
    if SHM.is_dir():
        marks.append(f"shm{os.stat(SHM).st_dev}")
    return "/".join([*marks, f"uid{os.geteuid()}"])


def machine_of(host: str) -> str:
    """What names of hosts have in common on one machine, whoever reads whose memory there.

    That is :func:`host_name` without its marks of ``/dev/shm`` and user; a name from settings stays as it is.
    """
    return _MARKS_OF_MEMORY.sub("", host)


@cache
def _boot_marks() -> tuple[str, ...]:
    """What differs for another boot, which no process outlives."""
    return (_BOOT_ID.read_text().strip()[:8],) if _BOOT_ID.exists() else ()


def host_of(config: Config) -> str:
    """The host's name as settings have it, else :func:`host_name`."""
    return config.host or host_name()
