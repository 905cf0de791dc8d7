"""Tests on a real SGLang: ``make e2e-sglang``. Without SGLang in the environment they are skipped."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.sglang.servers import Replica

FAMILIES = ("qwen3", "tied", "moe")
Start = Callable[..., Replica]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes a minute on an idle machine may take very long on a busy one."""
    here = Path(__file__).parent
    missing = pytest.mark.skip(reason="sglang is not installed here; 'make e2e-sglang' installs it in .venv-sglang")
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(1800))
            if importlib.util.find_spec("sglang") is None:
                item.add_marker(missing)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FAMILY-SEED folders, seeds 1 and 2."""
    folder = tmp_path_factory.mktemp("checkpoints")
    command = [sys.executable, "-m", "tests.sglang.checkpoints", str(folder), "--seed=1", "--seed=2"]
    subprocess.run([*command, *(f"--family={name}" for name in FAMILIES)], check=True, timeout=600)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Iterator[Start]:
    """Starts servers, which end with the module."""
    logs = tmp_path_factory.mktemp("logs")
    with ExitStack() as running:

        def started(family: str, seed: int, *arguments: str, **environment: str) -> Replica:
            log = logs / f"{family}-{seed}.log"
            replica = running.enter_context(Replica(checkpoints / f"{family}-{seed}", log, arguments, environment))
            replica.family, replica.folder = family, checkpoints
            return replica

        yield started
