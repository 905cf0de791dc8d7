"""A trainer that is killed while it leads an update of one engine: as soon as it has paused it, or when it is to serve.

Usage: ``python -m tests.support.dying_leader FLEET STEP CHECKPOINT ENDPOINT``, with FLEET as ``module:class``.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path

from ckpt_transport import Config, ParameterServer
from ckpt_transport.spi import Driver

pause = Driver.pause


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def pause_and_die(driver: Driver) -> None:  # type: ignore[type-arg]
    pause(driver)
    die()


def command(fleet: type, step: str, checkpoint: Path, endpoint: str) -> list[str]:
    """What starts it."""
    kind = f"{fleet.__module__}:{fleet.__qualname__}"
    return [sys.executable, "-m", "tests.support.dying_leader", kind, step, str(checkpoint), endpoint]


if __name__ == "__main__":
    kind, step, checkpoint, endpoint = sys.argv[1:]
    module, _, name = kind.partition(":")
    setattr(Driver, step, pause_and_die if step == "pause" else die)
    config = Config.load(heartbeat_interval=0.2, heartbeat_timeout=10.0, join_timeout=60.0)
    with ParameterServer(config) as server, getattr(import_module(module), name)([endpoint], config) as fleet:
        server.register("two", directory=Path(checkpoint))
        fleet.update(server, "two")
