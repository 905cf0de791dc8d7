"""Updates of real vLLM servers whose source is killed or stopped at a random moment, and what must hold after that."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckpt_transport import ask_version
from tests.vllm.servers import Answers, Replica

DEADLINE = 120.0
HEARTBEAT_TIMEOUT = 4.0
STOPPED = 6.0
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
SOURCE = f"""
import sys
from ckpt_transport import Config, ParameterServer
from ckpt_transport_vllm import VllmFleet

timing = dict(heartbeat_interval=0.2, heartbeat_timeout={HEARTBEAT_TIMEOUT}, join_timeout=30.0, update_timeout=60.0)
config = Config.load(transport="gloo", bucket_bytes="64KiB", **timing)
version, checkpoint, *endpoints = sys.argv[1:]
with ParameterServer(config) as server, VllmFleet(endpoints, config) as fleet:
    server.register(version, directory=checkpoint)
    print("begin", flush=True)
    fleet.update(server, version)
    print("done", flush=True)
"""


class Source:
    """A source in a process of its own, which is about to update."""

    def __init__(self, replicas: Sequence[Replica], version: str, checkpoint: Path) -> None:
        command = [sys.executable, "-c", SOURCE, version, str(checkpoint), *(replica.url for replica in replicas)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "begin\n", self._process.communicate()[1]
        self._began = time.monotonic()

    def ends(self) -> float:
        """Let it run; how many seconds the update took."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "done\n", self._end()
        seconds = time.monotonic() - self._began
        assert self._end() == ""
        return seconds

    def is_disturbed(self, act: signal.Signals, after: float) -> str:
        """Send it that signal after so many seconds; what it says in the end, empty when it has updated."""
        time.sleep(after)
        self._process.send_signal(act)
        if act is signal.SIGSTOP:
            time.sleep(STOPPED)
            self._process.send_signal(signal.SIGCONT)
        return self._end()

    def _end(self) -> str:
        said = self._process.communicate(timeout=DEADLINE)[1]
        return "" if self._process.returncode == 0 else said or f"ended with {self._process.returncode}"


def choose(seed: int, number: int, seconds: float) -> tuple[signal.Signals, float]:
    """What is done to the source in that round, and how long after the update has begun."""
    chance = random.Random(f"{seed} {number}")
    return chance.choice(SIGNALS), chance.uniform(0, seconds)


def settled(replica: Replica, versions: Mapping[str, Answers]) -> str:
    """Wait until it serves one of these versions bit for bit, or refuses: then the answer is empty."""
    end = time.monotonic() + DEADLINE
    while True:
        states = [ask_version(sink) for sink in replica.sinks()]
        if all(state.tainted for state in states):
            return ""
        version = states[0].version
        if not any(state.tainted for state in states) and len({state.version for state in states}) == 1:
            answers = replica.answers()
            again = [ask_version(sink) for sink in replica.sinks()]
            if [(state.version, state.tainted) for state in again] == [(version, "")] * len(states):
                assert answers == versions[version], f"{replica.url} says that it serves {version}, and does not"
                return version
        assert time.monotonic() < end, f"{replica.url} does not settle: {states}"
        time.sleep(0.2)
