"""``ckpt-transport`` as a process, with a heartbeat that notices a dead peer soon."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.fleet import DEADLINE

ENVIRONMENT = {**os.environ, "CKPT_TRANSPORT_HEARTBEAT_INTERVAL": "0.1", "CKPT_TRANSPORT_HEARTBEAT_TIMEOUT": "3"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ckpt_transport", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=DEADLINE, env=ENVIRONMENT)
