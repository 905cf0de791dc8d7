"""Processes of tests that stand still, as one does whose host is out of memory, and go on."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

PATIENCE = 150.0
"""Seconds in which a process that is to stand still does."""


def stop_myself(seconds: float) -> None:
    """Stand still for so long, with all threads, as a process does whose host is out of memory."""
    status = f"/proc/{os.getpid()}/status"
    wait = f"until grep -q '^State:.T' {status}; do [ -e {status} ] || exit; sleep 0.01; done"
    script = f"{wait}; sleep {seconds}; kill -CONT {os.getpid()}"
    subprocess.Popen(["sh", "-c", script])
    freeze()


def freeze() -> None:
    """Stand still, with all threads, until somebody calls :func:`thaw`."""
    time.sleep(1.0)  # until what was sent has left
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # another thread may take what the process is sent


def wait_until_frozen(process: BaseProcess) -> None:
    """Wait until the process stands still."""
    status = Path(f"/proc/{process.pid}/status")
    deadline = time.monotonic() + PATIENCE
    while "\nState:\tT" not in status.read_text():
        assert time.monotonic() < deadline, "the process does not stand still"
        time.sleep(0.01)


def thaw(process: BaseProcess) -> None:
    """Wait until the process stands still, and let it go on."""
    wait_until_frozen(process)
    os.kill(process.pid or 0, signal.SIGCONT)
