"""The worker processes of one server: started together, asked together, ended together."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec

from ckpt_transport.demo.protocol import (
    Channel,
    ChannelClosed,
    Ready,
    Reply,
    Request,
    Stop,
    decode_replies,
)

START_TIMEOUT = 90.0
REQUEST_TIMEOUT = 100.0
STOP_TIMEOUT = 15.0
TICK = 0.2


class TeamError(RuntimeError):
    """A worker is gone, or did not answer in time."""


class Team:
    """Workers that share one model. Close it to end them.

    Args:
        directory: the checkpoint they start with.
        version: its name.
        size: how many workers.

    Raises:
        TeamError: a worker did not start.
    """

    def __init__(self, directory: Path, version: str, size: int) -> None:
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels: list[Channel] = []
        self._directory = tempfile.TemporaryDirectory(prefix="ckpt-transport-demo-")
        try:
            for rank in range(size):
                self._start(directory, version, rank, size)
            deadline = time.monotonic() + START_TIMEOUT
            self.sinks: tuple[str, ...] = tuple(self._ready(rank, deadline).address for rank in range(size))
        except BaseException:
            self.close()
            raise

    def ask(self, request: Request) -> tuple[Reply, ...]:
        """Every worker's reply, by rank. Requests of several threads are served one after the other.

        Raises:
            TeamError: a worker is gone, or did not answer in time.
        """
        if not self._lock.acquire(timeout=REQUEST_TIMEOUT):
            raise TeamError(f"the workers were busy for {REQUEST_TIMEOUT:g} s")
        try:
            self.check()
            self._channels[0].send(request)
            line = self._channels[0].receive(REQUEST_TIMEOUT)
        except ChannelClosed as error:
            raise TeamError("worker 0 is gone") from error
        finally:
            self._lock.release()
        if line is None:
            self.close()
            raise TeamError(f"no answer from the workers in {REQUEST_TIMEOUT:g} s; they were ended")
        return decode_replies(line)

    def check(self) -> None:
        """
        Raises:
            TeamError: a worker is gone.
        """
        for rank, process in enumerate(self._processes):
            if process.poll() is not None:
                raise TeamError(f"worker {rank} is gone: exit status {process.returncode}")

    def close(self) -> None:
        """End all workers: politely, then not. Idempotent."""
        if self._channels and all(process.poll() is None for process in self._processes):
            with contextlib.suppress(ChannelClosed):
                self._channels[0].send(Stop())
        deadline = time.monotonic() + STOP_TIMEOUT
        for process in self._processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_TIMEOUT)
        for channel in self._channels:
            channel.socket.close()
        self._directory.cleanup()

    def _start(self, directory: Path, version: str, rank: int, size: int) -> None:
        ours, theirs = socket.socketpair()
        self._channels.append(Channel(ours))
        with theirs:
            command = [sys.executable, "-m", "ckpt_transport.demo.worker"]
            options = {
                "directory": directory,
                "version": version,
                "rank": rank,
                "world-size": size,
                "rendezvous": Path(self._directory.name) / "rendezvous",
                "channel": theirs.fileno(),
            }
            command += [f"--{name}={value}" for name, value in options.items()]
            self._processes.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), pass_fds=[theirs.fileno()]
                )
            )

    def _ready(self, rank: int, deadline: float) -> Ready:
        while time.monotonic() < deadline:
            self.check()
            try:
                line = self._channels[rank].receive(TICK)
            except ChannelClosed:
                self._processes[rank].wait(STOP_TIMEOUT)
                continue
            if line is not None:
                return msgspec.json.decode(line, type=Ready)
        raise TeamError(f"worker {rank} was not ready in {START_TIMEOUT:g} s")
