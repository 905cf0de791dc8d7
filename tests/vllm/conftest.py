"""Tests on a real vLLM: ``make e2e``. Without vLLM in the environment there are none."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm.servers import Replica, Started

collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A vLLM takes up to minutes to start on a busy machine."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FAMILY-SEED folders, seeds 1 and 2."""
    folder = tmp_path_factory.mktemp("checkpoints")
    families = [f"--family={name}" for name in ("qwen3", "tied", "moe", "neox")]
    seeds = [f"--seed={seed}" for seed in (1, 2)]
    command = [sys.executable, "-m", "tests.support.tiny_models", str(folder), *families, *seeds]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Iterator[Started]:
    """Starts servers, and ends them all at the end."""
    running = Started(checkpoints, tmp_path_factory.mktemp("logs"))
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(scope="module")
def pair(started: Started) -> Iterator[tuple[Replica, Replica]]:
    """Two replicas of the dense model, of which the first serves version 1 and the second version 2."""
    one, two = started.start("qwen3", 1), started.start("qwen3", 2)
    yield one.wait(), two.wait()
    started.stop(one, two)
