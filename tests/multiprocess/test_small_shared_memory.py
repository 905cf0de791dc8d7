"""A container has 64 MiB of ``/dev/shm`` by default: that is enough, and a sentence says what is better.

Each update runs in a mount namespace of its own with a ``/dev/shm`` of that size, which root can make.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

NAMESPACE = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size="$0" tmpfs /dev/shm && exec "$@"']
PROGRAM = """
import logging, sys
import torch
from ckpt_transport import Config, ParameterServer
from ckpt_transport_torch import attach

logging.basicConfig(level=logging.WARNING, format="%(message)s")
module = torch.nn.ModuleList(torch.nn.Linear(1024, 1024, bias=False) for _ in range(24))
config = Config(heartbeat_timeout=60)
with attach(module, config=config) as serving, ParameterServer(config) as server:
    for step in (1, 2):
        weights = {name: torch.full_like(tensor, step) for name, tensor in module.state_dict().items()}
        server.register(f"step-{step}", tensors=weights)
        report = server.update(f"step-{step}", [serving.address])
        server.unregister(f"step-{step}")
        assert all((tensor == step).all() for tensor in module.state_dict().values())
        print(serving.version, *report.transports)
"""

TAKEN_BY_OTHERS = """
import os
import torch
from ckpt_transport import Config, ParameterServer
from ckpt_transport_torch import attach

module = torch.nn.ModuleList(torch.nn.Linear(1024, 1024, bias=False) for _ in range(4))
config = Config(heartbeat_timeout=60, memory_budget="48MiB")
with attach(module, config=config) as serving, ParameterServer(config) as server:
    for step in (1, 2, 3):
        if step == 2:
            with open("/dev/shm/others", "wb") as file:
                status = os.statvfs("/dev/shm")
                os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize)
        if step == 3:
            os.unlink("/dev/shm/others")
        weights = {name: torch.full_like(tensor, step) for name, tensor in module.state_dict().items()}
        server.register(f"step-{step}", tensors=weights)
        report = server.update(f"step-{step}", [serving.address])
        assert all((tensor == step).all() for tensor in module.state_dict().values())
        print(serving.version, *report.transports)
"""


def may_mount() -> str:
    """Why no namespace with a ``/dev/shm`` of its own can be made here; empty where one can."""
    try:
        tried = subprocess.run([*NAMESPACE, "1m", "true"], capture_output=True, text=True, timeout=60)
    except OSError as error:
        return f"unshare: {error.strerror}"
    return tried.stderr.strip() if tried.returncode else ""


REASON = may_mount()
pytestmark = pytest.mark.skipif(bool(REASON), reason=f"a mount namespace cannot be made: {REASON}")


@pytest.mark.parametrize(
    ("size", "transport"), [pytest.param("64m", "shm", id="docker"), pytest.param("512k", "gloo", id="next-to-none")]
)
def test_given_a_small_shared_memory_when_a_larger_version_is_brought_then_it_arrives_and_the_cure_is_named(
    size: str, transport: str
) -> None:
    ran = subprocess.run([*NAMESPACE, size, sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=250)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n")[:2] == [f"step-1 {transport}", f"step-2 {transport}"]
    said = [line for line in ran.stderr.splitlines() if "private memory" in line]
    assert len(said) == 1, ran.stderr
    assert "100,663,296 are needed; start the container with --ipc=host or --shm-size" in said[0]


def test_given_shared_memory_that_others_fill_between_two_updates_then_the_next_version_goes_another_way() -> None:
    ran = subprocess.run(
        [*NAMESPACE, "64m", sys.executable, "-c", TAKEN_BY_OTHERS], capture_output=True, text=True, timeout=250
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["step-1 shm", "step-2 gloo", "step-3 shm"]
