"""The worker processes of one server: started together, asked together, ended together."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import msgspec

from examples.llama.protocol import (
    Answered,
    Channel,
    ChannelClosed,
    Numbered,
    Ready,
    Reply,
    Request,
    Stop,
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
        self._waiting: dict[int, Future[tuple[Reply, ...]]] = {}
        self._asked = 0
        self._broken = ""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels: list[Channel] = []
        self._directory = tempfile.TemporaryDirectory(prefix="ckpt-transport-demo-")
        try:
            for rank in range(size):
                self._start(directory, version, rank, size)
            deadline = time.monotonic() + START_TIMEOUT
            self.sinks: tuple[str, ...] = tuple(self._ready(rank, deadline).address for rank in range(size))
            self._listener.start()
        except BaseException:
            self.close()
            raise

    @property
    def processes(self) -> tuple[int, ...]:
        """Their process ids, by rank."""
        return tuple(process.pid for process in self._processes)

    def ask(self, request: Request) -> tuple[Reply, ...]:
        """Every worker's reply, by rank; of a generation, one. For any number of threads.

        Raises:
            TeamError: a worker is gone, or did not answer in time.
        """
        future: Future[tuple[Reply, ...]] = Future()
        with self._lock:
            self.check()
            self._asked += 1
            number = self._asked
            self._waiting[number] = future
            try:
                self._channels[0].send(Numbered(number, request))
            except ChannelClosed as error:
                del self._waiting[number]
                raise TeamError("worker 0 is gone") from error
        try:
            return future.result(REQUEST_TIMEOUT)
        except TimeoutError as error:
            raise TeamError(f"no answer from the workers in {REQUEST_TIMEOUT:g} s") from error
        finally:
            with self._lock:
                self._waiting.pop(number, None)

    def check(self) -> None:
        """
        Raises:
            TeamError: a worker is gone.
        """
        if self._broken:
            raise TeamError(self._broken)
        for rank, process in enumerate(self._processes):
            if process.poll() is not None:
                raise TeamError(f"worker {rank} is gone: exit status {process.returncode}")

    def close(self) -> None:
        """End all workers: politely, then not. Idempotent."""
        if self._channels and all(process.poll() is None for process in self._processes):
            with contextlib.suppress(ChannelClosed):
                self._channels[0].send(Numbered(0, Stop()))
        deadline = time.monotonic() + STOP_TIMEOUT
        for process in self._processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_TIMEOUT)
        if self._listener.is_alive():
            self._listener.join(STOP_TIMEOUT)
        for channel in self._channels:
            channel.socket.close()
        self._directory.cleanup()

    def _listen(self) -> None:
        """Hand each answer to the thread that asked; when there will be no more, say so to all that wait."""
        try:
            while True:
                line = self._channels[0].receive(TICK)
                if line is not None:
                    answered = msgspec.json.decode(line, type=Answered)
                    with self._lock:
                        future = self._waiting.pop(answered.number, None)
                    if future is not None:
                        future.set_result(answered.replies)
        except (ChannelClosed, msgspec.DecodeError) as error:
            with self._lock:
                self._broken = f"worker 0 does not answer any more: {error}"
                waiting = list(self._waiting.values())
                self._waiting.clear()
            for future in waiting:
                future.set_exception(TeamError(self._broken))

    def _start(self, directory: Path, version: str, rank: int, size: int) -> None:
        ours, theirs = socket.socketpair()
        self._channels.append(Channel(ours))
        with theirs:
            command = [sys.executable, "-m", "examples.llama.worker"]
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
