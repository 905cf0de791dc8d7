"""What holds for every test."""

from __future__ import annotations

import multiprocessing.forkserver
import os
import signal
import sys
import tempfile

import pytest

pytest_plugins = ["tests.deadlines"]

# Threads of a library that wait do not spin: on a busy machine that takes the time of those they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if "PYTEST_XDIST_WORKER" not in os.environ:
    # The rates that somebody has measured on this machine decide no test. Workers inherit the folder.
    _cache = tempfile.TemporaryDirectory(prefix="ckpt-transport-tests-")
    os.environ["XDG_CACHE_HOME"] = _cache.name

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells have background jobs ignore interrupts, and tests send them.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the fork server while :mod:`tests.fleet` is the last that has said what it loads."""
    if "tests.fleet" in sys.modules and not session.config.option.collectonly:
        multiprocessing.forkserver.ensure_running()
