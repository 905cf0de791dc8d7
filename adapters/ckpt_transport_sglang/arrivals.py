"""Waits for what a SGLang scheduler is sent."""

from __future__ import annotations

import time
from typing import Any

import zmq

YIELD_SECONDS = 0.001
"""For so long a scheduler rests that has no sockets to wait for, as a rank that hears of requests from another one."""
REST_MILLISECONDS = 5
"""For so long at most one rests that has."""


class Arrivals:
    """Lets a scheduler without requests rest until it is sent something, and leaves the interpreter to others.

    Args:
        scheduler: SGLang's, which is asked where it receives.
    """

    def __init__(self, scheduler: Any) -> None:
        receiver = getattr(scheduler, "request_receiver", None)
        found = (getattr(receiver, name, None) for name in ("recv_from_tokenizer", "recv_from_rpc"))
        sockets = [each for each in found if each is not None]
        self._poller = zmq.Poller()
        if all(isinstance(each, zmq.Socket) for each in sockets):
            for each in sockets:
                self._poller.register(each, zmq.POLLIN)

    def wait(self) -> None:
        """Wait for a moment, or until something has been sent."""
        if self._poller.sockets:
            self._poller.poll(REST_MILLISECONDS)
        else:
            time.sleep(YIELD_SECONDS)
