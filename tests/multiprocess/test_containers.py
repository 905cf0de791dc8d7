"""Two containers of one host use the same pages where they share ``/dev/shm`` and a name, else they talk over TCP.

A container is a process in namespaces of its own, of mounts, processes, IPC and host name, which root can make.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

NAMESPACES = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--mount-proc", "--kill-child"]
IN_CONTAINER = 'mount $0 /dev/shm && mount -t tmpfs tmpfs "$XDG_RUNTIME_DIR" && hostname "$1" && shift && exec "$@"'
OWN = "-t tmpfs tmpfs"
"""Of ``mount``: memory that no other container sees."""
ENGINE = """
import sys
import torch
from ckpt_transport_torch import attach

module = torch.nn.Linear(1024, 1024, bias=False)
with attach(module, "tcp://127.0.0.1:0") as serving:
    print(serving.address, flush=True)
    sys.stdin.readline()
    print(serving.version, bool((module.weight == 2).all()))
"""
TRAINER = """
import sys
import torch
from ckpt_transport import ParameterServer

with ParameterServer() as server:
    server.register("step-2", tensors={"weight": torch.full((1024, 1024), 2.0)})
    print(*server.update("step-2", [sys.argv[1]]).transports)
"""


def container(name: str, shm: str, environ: dict[str, str], *program: str) -> subprocess.Popen[str]:
    """Start a program in a container; ``shm`` is what ``mount`` is to put at its ``/dev/shm``."""
    return subprocess.Popen(
        [*NAMESPACES, "sh", "-c", IN_CONTAINER, shm, name, sys.executable, "-c", *program],
        env={**os.environ, "CKPT_TRANSPORT_HEARTBEAT_TIMEOUT": "60", **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def tmpfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in shared memory; skipped where no container can be made."""
    folder = Path("/dev/shm") / f"containers-{os.getpid()}"
    folder.mkdir()
    try:
        try:
            tried = subprocess.run(
                [*NAMESPACES, "sh", "-c", IN_CONTAINER, OWN, "tried", "true"],
                env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path_factory.mktemp("run"))},
                capture_output=True,
                text=True,
                timeout=60,
            )
        except OSError as error:
            pytest.skip(f"unshare: {error.strerror}")
        if tried.returncode:
            pytest.skip(f"namespaces cannot be made: {tried.stderr.strip()}")
        yield folder
    finally:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()


def secret_in(folder: Path) -> str:
    secret = folder.parent / f"{folder.name}-secret"
    secret.write_bytes(os.urandom(32))
    secret.chmod(0o600)
    return str(secret)


@pytest.mark.parametrize(
    ("shares", "host", "transport"),
    [pytest.param(True, "node", "shm", id="one-dev-shm"), pytest.param(False, "", "gloo", id="nothing-in-common")],
)
def test_given_two_containers_then_bytes_go_over_shared_memory_where_they_have_it_in_common(
    tmpfs: Path, tmp_path: Path, shares: bool, host: str, transport: str
) -> None:
    environ = {"CKPT_TRANSPORT_HOST": host, "CKPT_TRANSPORT_SECRET_FILE": secret_in(tmp_path)}
    environ["XDG_RUNTIME_DIR"] = str(tmp_path)
    shm = f"--bind {tmpfs}" if shares else OWN
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(container("engine", shm, environ, ENGINE))
        stack.callback(engine.kill)
        assert engine.stdout is not None
        address = engine.stdout.readline().strip()
        assert address.startswith("tcp://"), engine.communicate(timeout=60)
        trainer = stack.enter_context(container("trainer", shm, environ, TRAINER, address))
        stack.callback(trainer.kill)
        brought, problems = trainer.communicate(timeout=250)
        assert brought.strip() == transport, problems
        served, problems = engine.communicate("end\n", timeout=60)
        assert served == "step-2 True\n", problems
