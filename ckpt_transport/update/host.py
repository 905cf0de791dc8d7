"""Two processes are on one host if they can map each other's shared memory; this module names the host."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path

from ckpt_transport.config import Config
from ckpt_transport.memory.segment import SHM

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def host_name() -> str:
    """The host's name, with marks that differ for another boot, another ``/dev/shm`` (another container) and user."""
    marks = [socket.gethostname(), *_boot_marks()]
    if SHM.is_dir():
        marks.append(f"shm{os.stat(SHM).st_dev}")
    return "/".join([*marks, f"uid{os.geteuid()}"])


def machine_of(host: str) -> str:
    """What names of hosts have in common on one machine, whoever maps whose memory there: its name and its boot."""
    return "/".join(host.split("/")[:2])


@cache
def _boot_marks() -> tuple[str, ...]:
    """What differs for another boot, which no process outlives."""
    return (_BOOT_ID.read_text().strip()[:8],) if _BOOT_ID.exists() else ()


def host_of(config: Config) -> str:
    """The host's name as settings have it, else :func:`host_name`."""
    return config.host or host_name()
