"""``/dev/shm`` holds checkpoints between processes of one host, and is small in containers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ckpt_transport.diagnosis.finding import Finding, Severity
from ckpt_transport.memory.segment import SHM
from ckpt_transport.sizes import size

SMALL = 1 << 30
"""Fewer bytes than this hold no checkpoint that people serve; Docker gives 64 MiB."""
CURE = "start the container with --ipc=host, or --shm-size as large as the checkpoint"


def look(place: Path = SHM) -> Iterator[Finding]:
    """Look at its size, and whether this user may write there."""
    topic = str(place)
    try:
        status = os.statvfs(place)
    except OSError as error:
        yield Finding(topic, Severity.PROBLEM, f"cannot be looked at: {error.strerror}", f"mount a tmpfs at {place}")
        return
    if not os.access(place, os.W_OK | os.X_OK):
        yield Finding(topic, Severity.PROBLEM, "this user may not write there", f"chmod 1777 {place}")
        return
    whole, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    said = f"{size(free)} of {size(whole)} are free"
    if whole < SMALL:
        yield Finding(topic, Severity.WARNING, f"{said}, which holds no large checkpoint", CURE)
    elif free < SMALL:
        cure = f"remove what other programs have left in {place}"
        yield Finding(topic, Severity.WARNING, f"{said}, which holds no large checkpoint", cure)
    else:
        yield Finding(topic, Severity.OK, said)
