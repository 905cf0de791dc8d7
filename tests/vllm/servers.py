"""Real vLLM servers for tests, and what they should say."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil
import torch

from ckpt_transport import Config, ParameterServer, ask_version
from ckpt_transport import Mapping as Rules
from ckpt_transport.service.endpoints import client_of
from ckpt_transport.service.fleet import FleetReport
from ckpt_transport_vllm import VllmFleet
from ckpt_transport_vllm.server import VllmServer
from tests.support import dying_leader
from tests.support.answers import PATIENCE as PATIENCE
from tests.support.answers import PROMPTS as PROMPTS
from tests.support.answers import Answers as Answers
from tests.support.vllm_server import CLI, EXTENDED, Process, Serve
from tests.vllm.forked import Forked

STUCK_SECONDS = 10.0
"""After so long a server that does not answer is stuck, and not only slow."""
TWO_RANKS = ("--tensor-parallel-size=2",)
CORES = "VLLM_CPU_OMP_THREADS_BIND"
PATIENT = {"CKPT_TRANSPORT_HEARTBEAT_TIMEOUT": "20"}
"""For a server whose source may be silent for longer than usual, as on a busy machine."""
TWO_CORES = {CORES: "0|1", **PATIENT}
"""For a server of two ranks: it keeps two cores busy."""
SWIFT = {"heartbeat_interval": 0.2, "heartbeat_timeout": 20.0, "join_timeout": 60.0, "update_timeout": 120.0}
SMALL_SLOTS = {"transport": "gloo", "bucket_bytes": "64KiB"}
"""Slots that hold less than a module, over a transport that copies into them."""


class Replica(Serve):
    """A server, and the checkpoint family it serves."""

    family: str
    folder: Path

    def wait(self) -> Replica:
        super().wait()
        return self

    def checkpoint(self, seed: int) -> Path:
        """Another version of what it serves."""
        return self.folder / f"{self.family}-{seed}"

    def tokens(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(self.complete(prompt)) for prompt in PROMPTS)

    def answers(self) -> Answers:
        return Answers(self.tokens(), tuple(self.checksums()))

    def is_alive(self) -> bool:
        """Whether it is healthy, its engine core included."""
        with contextlib.suppress(httpx.HTTPError), client_of(self.url, PATIENCE) as client:
            return client.get("/health").is_success
        return False

    def is_paused(self) -> bool:
        with VllmServer(self.url) as server:
            return server.is_paused()

    def version(self) -> str:
        with VllmServer(self.url) as server:
            return server.weight_version()

    def sinks(self) -> list[str]:
        """Addresses of its workers' sinks."""
        with VllmServer(self.url) as server:
            return [answer["address"] for answer in server.call_workers("ckpt_transport_attach")]

    def tainted(self) -> list[str]:
        """Why each worker must not serve; empty strings where it may."""
        return [ask_version(sink, timeout=PATIENCE).tainted for sink in self.sinks()]

    def workers(self) -> list[psutil.Process]:
        """The processes that hold weights: the engine core, or its workers when there are several."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        named = [child for child in children if "VLLM::Worker" in " ".join(child.cmdline())]
        return named or [child for child in children if "VLLM::EngineCore" in " ".join(child.cmdline())]


class ForkedReplica(Replica):
    """One whose processes need not import vLLM."""

    def _start(self, arguments: Sequence[str], environment: dict[str, str]) -> Process:
        return Forked(CLI, arguments, environment, self._log)


class Started:
    """Starts servers and ends them."""

    def __init__(self, checkpoints: Path, logs: Path) -> None:
        self._checkpoints, self._logs = checkpoints, logs
        self._running: list[Replica] = []
        self._count = 0
        self._cores = itertools.cycle(sorted(os.sched_getaffinity(0)))

    def start(
        self,
        family: str,
        seed: int,
        arguments: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        way_in: Sequence[str] = EXTENDED,
        directory: Path | None = None,
        kind: type[Replica] = ForkedReplica,
    ) -> Replica:
        """Start one, on the next core, from another directory if given; call ``wait`` before use.

        It writes to a log of its own. A plain :class:`Replica` is the command ``vllm serve``, as a person calls it.
        """
        self._count += 1
        log = self._logs / f"{self._count}-{family}-{seed}.log"
        directory = directory or self._checkpoints / f"{family}-{seed}"
        environment = {CORES: str(next(self._cores)), **(PATIENT if environment is None else environment)}
        replica = kind(directory, log, (*way_in, *arguments), environment)
        replica.family, replica.folder = family, self._checkpoints
        self._running.append(replica)
        return replica

    def stop(self, *replicas: Replica) -> None:
        for replica in replicas:
            replica.close()
            self._running.remove(replica)

    def close(self) -> None:
        self.stop(*self._running)


def swift(**settings: Any) -> Config:
    """Settings with short deadlines, though not for a machine with more vLLM on it than cores."""
    wanted: dict[str, Any] = {**SWIFT, **settings}
    return Config.load(**wanted)


def update(
    replicas: Sequence[Replica], checkpoint: Path, version: str, *, pause: str = "keep", **settings: Any
) -> FleetReport:
    """Update once, as a program would that then ends."""
    return _update(
        replicas, version, pause, swift(**settings), lambda server: server.register(version, directory=checkpoint)
    )


def bring(
    replicas: Sequence[Replica],
    tensors: Mapping[str, torch.Tensor],
    version: str,
    mapping: Rules | None = None,
    **settings: Any,
) -> FleetReport:
    """The same with tensors."""
    return _update(
        replicas,
        version,
        "keep",
        swift(**settings),
        lambda server: server.register(version, tensors=tensors, mapping=mapping),
    )


def _update(
    replicas: Sequence[Replica],
    version: str,
    pause: str,
    config: Config,
    register: Callable[[ParameterServer], object],
) -> FleetReport:
    with ParameterServer(config) as server, VllmFleet([each.url for each in replicas], config, pause) as fleet:
        register(server)
        done = fleet.update(server, version)
        assert done is not None
        return done


def roll_back(replicas: Sequence[Replica]) -> FleetReport:
    """Have them serve the version before, as a program would that then ends."""
    config = swift()
    with ParameterServer(config) as server, VllmFleet([each.url for each in replicas], config) as fleet:
        return fleet.rollback(server)


@dataclass(frozen=True)
class Completion:
    """One request: when it began and ended, and its tokens, or the error."""

    began: float
    ended: float
    tokens: tuple[int, ...]
    error: str


class Traffic:
    """Completions without a pause, from one thread per server, while the context lasts."""

    def __init__(self, replicas: Sequence[Replica], threads: int = 1) -> None:
        self.done: dict[str, list[Completion]] = {replica.url: [] for replica in replicas}
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(replica,), daemon=True)
            for replica in replicas
            for _ in range(threads)
        ]

    def _ask(self, replica: Replica) -> None:
        while not self._stopping.is_set():
            began, error = time.monotonic(), ""
            tokens: tuple[int, ...] = ()
            try:
                tokens = tuple(replica.complete(PROMPTS[0], timeout=PATIENCE))
            except Exception as caught:
                error = f"{type(caught).__name__}: {caught}"
            self.done[replica.url].append(Completion(began, time.monotonic(), tokens, error))

    def wait(self, requests: int) -> None:
        """Until every server has answered that many more."""
        wanted = {url: len(done) + requests for url, done in self.done.items()}
        deadline = time.monotonic() + PATIENCE
        while any(len(self.done[url]) < count for url, count in wanted.items()):
            assert time.monotonic() < deadline, "requests are not answered"
            time.sleep(0.02)

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE)


@contextlib.contextmanager
def unanswered(replica: Replica, seconds: float) -> Iterator[None]:
    """See that a request which begins now is not answered before the block ends, and is afterwards."""
    answered = threading.Event()
    found: list[list[int]] = []

    def ask() -> None:
        found.append(replica.complete(PROMPTS[0], timeout=PATIENCE))
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    assert not answered.wait(seconds), "a request was served from weights that are a mix"
    yield
    assert answered.wait(PATIENCE), "the request that was held is never answered"
    thread.join()


def wait_until_stuck(replica: Replica) -> None:
    """Wait until a forward pass waits in the engine, which then answers nothing that its core must answer."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with client_of(replica.url, STUCK_SECONDS) as client:
            try:
                client.get("/is_paused")
            except httpx.ReadTimeout:
                return
    raise AssertionError("no forward pass waits, though there are requests")


def pause_and_die(replica: Replica, step: Literal["pause", "serve"] = "pause") -> None:
    """An update whose program is killed when it has paused the server: just then, or when it is to serve again."""
    command = dying_leader.command(VllmFleet, step, replica.checkpoint(2), replica.url)
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert replica.is_paused()
