"""Real SGLang servers for tests, what they should say, and what is brought to them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ckpt_transport import Config, FleetReport, ParameterServer, ask_version
from ckpt_transport.service.endpoints import client_of
from ckpt_transport_sglang import SglangFleet
from ckpt_transport_sglang.fleet import SglangDriver
from ckpt_transport_sglang.server import SglangServer
from tests.support.answers import PATIENCE as PATIENCE
from tests.support.answers import PROMPTS as PROMPTS
from tests.support.answers import Answers as Answers
from tests.support.sglang_server import SglangServe, events

TWO_RANKS = ("--tp-size=2", "--sleep-on-idle")
TWO_CORES = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
SWIFT = {"heartbeat_interval": 0.2, "heartbeat_timeout": 20.0, "join_timeout": 60.0, "update_timeout": 120.0}


class Replica(SglangServe):
    """A server, and the checkpoint family it serves."""

    family: str
    folder: Path
    key_file: Path | None = None

    def checkpoint(self, seed: int) -> Path:
        """Another version of what it serves."""
        return self.folder / f"{self.family}-{seed}"

    def tokens(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(self.complete(prompt, timeout=PATIENCE)) for prompt in PROMPTS)

    def answers(self) -> Answers:
        return Answers(self.tokens(), tuple(self.checksums()))

    def follow(self, prompt: str, tokens: int, begun: Callable[[], object]) -> dict[str, Any]:
        """A greedy completion as SGLang gives it in the end; ``begun`` is called when it has begun to."""
        answer: dict[str, Any] = {}
        with client_of(self.url, PATIENCE) as client:
            for event in events(client, prompt, tokens):
                answer = event
                begun()
        return answer

    def driven(self) -> SglangServer:
        """What drives it, with the key that it wants."""
        return SglangServer(self.url, str(self.key_file or ""))

    def version(self) -> str:
        with self.driven() as server:
            return server.weight_version()

    def is_paused(self) -> bool:
        with self.driven() as server:
            return server.is_paused()

    def sinks(self) -> list[str]:
        """Addresses of its ranks' sinks."""
        with self.driven() as server:
            return server.attach("")

    def tainted(self) -> list[str]:
        """Why each rank must not serve; empty strings where it may."""
        return [ask_version(sink, timeout=PATIENCE).tainted for sink in self.sinks()]

    def loaded_by_itself(self, seed: int) -> Answers:
        """What it says when SGLang's own loader has loaded a checkpoint, as a fresh start does."""
        self.ask("POST", "/update_weights_from_disk", {"model_path": str(self.checkpoint(seed))}, PATIENCE)
        return self.answers()


def swift(**settings: Any) -> Config:
    """Settings with short deadlines, though not for a machine with more on it than cores."""
    wanted: dict[str, Any] = {**SWIFT, **settings}
    return Config.load(**wanted)


Happens = Callable[[], object]


class BusyDriver(SglangDriver):
    """Drives a server to which something happens before it is paused, and when it is."""

    def __init__(
        self, engine: SglangServer, config: Config, pause: str, happens: Happens, when_paused: Happens
    ) -> None:
        super().__init__(engine, config, pause)
        self._happens, self._when_paused = happens, when_paused

    def pause(self) -> None:
        self._happens()
        super().pause()
        self._when_paused()


class BusyFleet(SglangFleet):
    """Servers to which something happens before they are paused, and when they are."""

    happens: Happens
    when_paused: Happens

    def _driver_for(self, engine: SglangServer) -> SglangDriver:
        return BusyDriver(engine, self._config, self._pause, self.happens, self.when_paused)


def nothing() -> None:
    """Happens."""


def update(
    replicas: Sequence[Replica],
    checkpoint: Path,
    version: str,
    *,
    pause: str = "keep",
    happens: Happens = nothing,
    when_paused: Happens = nothing,
    **settings: Any,
) -> FleetReport:
    """Update once, as a program would that then ends. Things happen before servers are paused, and when they are."""
    config = swift(**settings, **_key_of(replicas))
    with ParameterServer(config) as server, BusyFleet([each.url for each in replicas], config, pause) as fleet:
        fleet.happens, fleet.when_paused = happens, when_paused
        server.register(version, directory=checkpoint)
        done = fleet.update(server, version)
        assert done is not None
        return done


def _key_of(replicas: Sequence[Replica]) -> dict[str, str]:
    return next(({"api_key_file": str(each.key_file)} for each in replicas if each.key_file is not None), {})


def roll_back(replica: Replica) -> FleetReport:
    """Have it serve the version before, as a program would that then ends."""
    config = swift(**_key_of([replica]))
    with ParameterServer(config) as server, SglangFleet([replica.url], config) as fleet:
        return fleet.rollback(server)


def command(replica: Replica, *arguments: object) -> str:
    """What ``ckpt-transport ARGUMENTS`` prints, of whom the settings are those of a replica; it must succeed."""
    asked = [sys.executable, "-m", "ckpt_transport", *map(str, arguments)]
    settings = {f"CKPT_TRANSPORT_{name.upper()}": value for name, value in _key_of([replica]).items()}
    ran = subprocess.run(
        asked,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, **settings, "COLUMNS": "200"},
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout
