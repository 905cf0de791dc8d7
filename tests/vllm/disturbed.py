"""Updates of real vLLM servers whose source is killed or stopped at a random moment, and what must hold after that."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
from msgspec.structs import replace

from ckpt_transport import ask_version
from ckpt_transport.service.questions import ServedVersion
from tests.vllm.servers import PATIENCE, Answers, Replica

HEARTBEAT_TIMEOUT = 10.0
"""Of servers and sources; less, and a busy machine makes one that lives look dead."""
STOPPED = 14.0
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
SOURCE = f"""
import sys
from ckpt_transport import Config, ParameterServer
from ckpt_transport_vllm import VllmFleet

timing = dict(heartbeat_interval=0.2, heartbeat_timeout={HEARTBEAT_TIMEOUT}, join_timeout=60.0, update_timeout=120.0)
config = Config.load(transport="gloo", bucket_bytes="64KiB", **timing)
version, checkpoint, *endpoints = sys.argv[1:]
with ParameterServer(config) as server, VllmFleet(endpoints, config) as fleet:
    server.register(version, directory=checkpoint)
    print("begin", flush=True)
    report = fleet.update(server, version)
    print("done", flush=True)
if report.problems:
    sys.exit("; ".join(report.problems))
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
        said = self._process.communicate(timeout=PATIENCE)[1]
        return "" if self._process.returncode == 0 else said or f"ended with {self._process.returncode}"


def choose(seed: int, number: int, seconds: float) -> tuple[signal.Signals, float]:
    """What is done to the source in that round, and how long after the update has begun."""
    chance = random.Random(f"{seed} {number}")
    return chance.choice(SIGNALS), chance.uniform(0, seconds)


def settled(replica: Replica, versions: Mapping[str, Answers], *, abandoned: bool) -> str:
    """Wait until it serves one of these versions bit for bit, or says that it serves nothing: then the answer is empty.

    It serves nothing while its weights are a mix. Nor does it while it is paused: whoever leads an update pauses the
    server before its sinks are held, and resumes it after they have committed. A source that dies in between leaves
    the pause to the next update.

    Args:
        versions: what it should answer, by version.
        abandoned: the source may have died, so that a pause may be left of it.
    """
    end = time.monotonic() + PATIENCE
    while True:
        found = states(replica)
        if not any(state.update for state in found):
            if all(state.tainted for state in found) or (abandoned and replica.is_paused()):
                return ""
            with contextlib.suppress(httpx.ReadTimeout):  # a pause for which the source asked may come only now
                answers = replica.answers()
                if states(replica) == found:
                    version = found[0].version
                    assert answers == versions[version], f"{replica.url} says that it serves {version}, and does not"
                    return version
        assert time.monotonic() < end, f"{replica.url} does not settle: {found}; is paused: {replica.is_paused()}"
        time.sleep(0.2)


def states(replica: Replica) -> list[ServedVersion]:
    """What its workers' sinks say of themselves, but for the time at which they say it."""
    return [replace(ask_version(sink, timeout=PATIENCE), clock=0.0) for sink in replica.sinks()]
