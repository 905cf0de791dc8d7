"""``transformers serve`` in a process of its own is updated by the command line while it answers requests."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ckpt_transport import ask_version
from tests.patience import PATIENT
from tests.support.ports import free_port

NEEDED = ("transformers", "fastapi", "uvicorn", "openai", "accelerate")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: pip install -e '.[frameworks]'"),
]


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Path]:
    families = ["--family=qwen3", "--seed=1", "--seed=2"]
    subprocess.run([sys.executable, "-m", "tests.support.tiny_models", tmp_path, *families], check=True, timeout=200)
    return [tmp_path / "qwen3-1", tmp_path / "qwen3-2"]


@contextmanager
def server(checkpoint: Path) -> Iterator[tuple[str, str]]:
    """The URL of a server, and the address of its sink."""
    port, sink = free_port(), f"ipc://{checkpoint}/sink"
    batches = ["--continuous-batching", "--cb-num-blocks=64", "--cb-max-batch-tokens=64"]
    command = [sys.executable, "-m", "ckpt_transport_transformers", "--sink", sink, "serve", str(checkpoint)]
    with (checkpoint / "log").open("w") as log:
        served = subprocess.Popen([*command, *batches, f"--port={port}"], stdout=log, stderr=log, env=_patient())
        try:
            yield f"http://localhost:{port}", sink
        finally:
            served.terminate()
            served.wait(60)


def _patient() -> dict[str, str]:
    settings = {f"CKPT_TRANSPORT_{name.upper()}": str(value) for name, value in PATIENT.items()}
    return {**os.environ, **settings}


def says(url: str, checkpoint: Path) -> str:
    """What the server answers, once it is up."""
    asked = {"model": str(checkpoint), "prompt": "hello", "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(asked).encode(), {"content-type": "application/json"}
    )
    for _ in range(400):
        try:
            with urllib.request.urlopen(request, timeout=100) as answer:
                told: dict[str, Any] = json.load(answer)
                text: str = told["choices"][0]["text"]
                return text
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except (ConnectionError, urllib.error.URLError):
            time.sleep(0.5)
    raise AssertionError("the server does not come up")


def test_given_a_server_then_it_answers_as_one_that_was_started_with_the_version_that_was_brought(
    checkpoints: list[Path],
) -> None:
    first, second = checkpoints
    with server(second) as (url, _):
        wanted = says(url, second)
    with server(first) as (url, sink):
        assert says(url, first) != wanted
        update = ["update", "--sink", sink, "--checkpoint", str(second), "--version", "v2", "--transport", "shm"]
        command = [sys.executable, "-m", "ckpt_transport", *update]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=200, env=_patient())
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert says(url, first) == wanted
        assert ask_version(sink, timeout=100).version == "v2"
