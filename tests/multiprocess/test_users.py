"""A trainer and an engine of two users of one host: they talk over TCP, and map nothing of each other's."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import DEADLINE, PATIENCE

USERS = (64001, 64002)
AS_USER = """
import encodings.idna, os, sys
import torch
from ckpt_transport import Config, ParameterServer
from ckpt_transport_torch import attach

def bring(version, transport, sink):
    with ParameterServer(Config.load(transport=transport, commit="staged"), rank=0, world_size=1) as server:
        return server.publish(version, {"weight": torch.full((512, 512), 2.0)}, [sink])

# The interpreter may lie where only root can read it, so all that is imported late is imported now.
module = torch.nn.Linear(512, 512, bias=False)
for transport in ("auto", "gloo"):
    with attach(module) as serving:
        bring("step-1", transport, serving)
os.setgroups([])
os.setresgid(*[int(sys.argv[1])] * 3)
os.setresuid(*[int(sys.argv[1])] * 3)
"""
ENGINE = """
torch.nn.init.zeros_(module.weight)
with attach(module, "tcp://127.0.0.1:0") as serving:
    print(serving.address, flush=True)
    sys.stdin.readline()
    print(serving.version, bool((module.weight == 2).all()))
"""
TRAINER = """
print(*bring("step-2", "auto", sys.argv[2]).transports)
"""


@pytest.fixture
def homes() -> Iterator[list[Path]]:
    """A folder of each user, with the secret of both."""
    secret = os.urandom(32)
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        folders = [Path(name) / str(user) for user in USERS]
        for user, folder in zip(USERS, folders, strict=True):
            folder.mkdir(mode=0o700)
            (folder / "secret").write_bytes(secret)
            (folder / "secret").chmod(0o600)
            for path in (folder, folder / "secret"):
                os.chown(path, user, user)
        yield folders


def program(user: int, home: Path, text: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", AS_USER + text, str(user), *arguments],
        env={
            **os.environ,
            "CKPT_TRANSPORT_SECRET_FILE": str(home / "secret"),
            "CKPT_TRANSPORT_HEARTBEAT_TIMEOUT": "60",
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_given_a_trainer_and_an_engine_of_two_users_then_auto_takes_what_reaches_both(homes: list[Path]) -> None:
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(program(USERS[0], homes[0], ENGINE))
        stack.callback(engine.kill)
        assert engine.stdout is not None
        address = engine.stdout.readline().strip()
        assert address.startswith("tcp://"), engine.communicate(timeout=PATIENCE)
        trainer = stack.enter_context(program(USERS[1], homes[1], TRAINER, address))
        stack.callback(trainer.kill)
        brought, problems = trainer.communicate(timeout=DEADLINE)
        assert brought.strip() == "gloo", problems
        served, problems = engine.communicate("end\n", timeout=PATIENCE)
        assert served == "step-2 True\n", problems
