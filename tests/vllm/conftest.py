"""Tests on a real vLLM: ``make e2e``. Without vLLM in the environment there are none."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt_transport.memory.segment import SHM
from tests.vllm import forked
from tests.vllm.forked import output_of
from tests.vllm.servers import Replica, Started

collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]


_engines_memory = set(SHM.glob("vllm_dist_*"))
"""What engines of others had in shared memory when the tests began."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: needs the machine for itself, as two cores or all of /dev/shm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes a minute on an idle machine may take very long on a busy one."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(3600))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove what vLLM's engines of several ranks leave in shared memory when they end. No worker runs any more."""
    if not hasattr(session.config, "workerinput"):
        for left in set(SHM.glob("vllm_dist_*")) - _engines_memory:
            left.unlink(missing_ok=True)


@pytest.fixture(scope="session", autouse=True)
def forking() -> None:
    """Start the process from which those that import vLLM are forked."""
    forked.begin()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FAMILY-SEED folders, seeds 1 and 2."""
    folder = tmp_path_factory.mktemp("checkpoints")
    families = [f"--family={name}" for name in ("qwen3", "tied", "moe", "neox")]
    output_of("tests.support.tiny_models", str(folder), *families, "--seed=1", "--seed=2")
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
