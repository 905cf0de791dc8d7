"""verl's own manager, worker groups and rollout workers bring weights by our engine."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckpt_transport.memory.segment import PREFIX, SHM

STORE_NBYTES = 80 << 20
"""Memory of Ray's object store: nothing of ours goes through it."""
SECONDS = 60.0


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    import ray

    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # paths of sockets are short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))  # Ray writes a token there
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("RAY_ADDRESS", raising=False)
        try:
            ray.init(
                num_cpus=4,
                object_store_memory=STORE_NBYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
            yield ray
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def pids(ray: Any, group: Any) -> list[int]:
    asked = [worker.__ray_call__.remote(lambda _: os.getpid()) for worker in group.workers]
    return list(ray.get(asked, timeout=SECONDS))


def wait_until_gone(pid: int) -> None:
    """Ended, and collected by the process that started it."""
    deadline = time.monotonic() + SECONDS
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.05)


def test_given_verls_manager_when_steps_are_trained_then_rollouts_serve_each_and_killed_trainers_leave_no_memory(
    ray: Any,
) -> None:
    from examples.trainers.verl_manager import start

    actors, rollouts, manager = start()
    losses = set()
    for step in (1, 2, 3):
        (loss, same) = actors.step()
        metrics = manager.update_weights(global_steps=step)
        assert rollouts.loss() == [loss, loss] == [same, same]
        assert metrics["weight_sync/seconds"] > 0
        losses.add(loss)
    assert len(losses) == 3

    trainers = pids(ray, actors)
    for pid in trainers:
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid)
    left = [path.name for pid in trainers for path in SHM.glob(f"{PREFIX}{os.getuid()}-{pid}-*")]
    assert left == []
    assert rollouts.loss() == [loss, loss]
