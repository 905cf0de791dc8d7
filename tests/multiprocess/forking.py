"""A trainer that forks: ``-m tests.multiprocess.forking TRANSPORT SINK NEW_SINK``; it exits with 0 if all is well.

Children end as Python ends: objects are collected, and functions registered with ``atexit`` run.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import UsageError
from tests.fleet import weights
from tests.patience import PATIENT

PATIENCE_SECONDS = 60.0


def in_a_child(act: Callable[[], Any]) -> None:
    child = os.fork()
    if child == 0:
        act()
        sys.exit(0)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}"
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    sys.exit("a child hangs")


def main(transport: str, sink: str, new_sink: str) -> None:
    server = ParameterServer(Config.load(transport=transport, **PATIENT))
    v2, v3 = weights(2), weights(3)
    server.register("v2", tensors=v2)
    server.update("v2", [sink])

    def collect() -> None:
        nonlocal server
        del server
        gc.collect()

    def use() -> None:
        calls: tuple[Callable[[], Any], ...] = (
            lambda: server.update("v2", [sink]),
            lambda: server.register("v3", tensors=v3),
            lambda: server.lend("v3", v3),
            lambda: server.unregister("v2"),
        )
        for call in calls:
            with pytest.raises(UsageError, match=f"was made in process {os.getppid()}"):
                call()

    for act in (lambda: None, collect, server.close, use):
        in_a_child(act)
        server.update("v2", [sink])
    server.update("v2", [sink, new_sink])
    server.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
