"""Shared memory that processes of tests have not given back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from ckpt_transport.memory.segment import PREFIX, SHM, sweep_leftovers

SWEEP_SECONDS = 60.0
"""For so long another process that sweeps may keep what it is about to remove."""


def _began(pid: int) -> str:
    """When that process began, in ticks since the machine did; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


_processes = {os.getpid(): _began(os.getpid())}
"""When this process and those that it has started began, by their numbers, which are given again."""


def started_here(process: BaseProcess) -> None:
    """What it leaves behind is looked for by :func:`left_behind`."""
    pid = process.pid or 0
    _processes[pid] = _began(pid)


def left_behind() -> list[Path]:
    """Shared memory that this process, or one it has started, has not given back."""
    return [path for path in SHM.glob(f"{PREFIX}*") if _is_ours(int(path.name.removeprefix(PREFIX).split("-")[1]))]


def swept(is_gone: Callable[[], bool] = lambda: not left_behind()) -> bool:
    """Remove what the dead have left, as the next process does; whether it is gone.

    Processes of other tests sweep, too, and nobody else can remove what one of them has just locked to remove it.
    """
    end = time.monotonic() + SWEEP_SECONDS
    sweep_leftovers()
    while not (gone := is_gone()) and time.monotonic() < end:
        time.sleep(0.01)
        sweep_leftovers()
    return gone


def _is_ours(pid: int) -> bool:
    return pid in _processes and _began(pid) in ("", _processes[pid])
