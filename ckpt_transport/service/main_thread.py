"""A process begins to end when its main thread does, however long other threads go on."""

from __future__ import annotations

import os
import threading


def why_ending() -> str:
    """Why nothing new can begin in this process; empty while its main thread lives.

    Python shuts all pools of threads down when the main thread ends, and waits for the other threads afterwards.
    """
    if threading.main_thread().is_alive():
        return ""
    return (
        f"the main thread of process {os.getpid()} has ended, and Python lets no pool of threads work after that; keep "
        "it, as by join() of the thread that serves"
    )
