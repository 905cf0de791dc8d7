"""Given TRL's trainers and a vLLM server, when they train, then our client brings each step's weights to the server.

TRL and the 70 MB that it needs are not in the environment of ``make e2e``: ``pip install trl``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ckpt_transport import Mapping, rules
from tests.support.vllm_server import NATIVE
from tests.vllm.servers import PATIENCE, Replica, Started, bring

LOGPROBS = ("--logprobs-mode=processed_logprobs", "--max-logprobs=-1")
"""What TRL asks of a server."""


def train(module: str, model: Path, replica: Replica, folder: Path) -> int:
    """Run an example; how often it has updated the server."""
    done = subprocess.run(
        [sys.executable, "-m", module, str(model), replica.url, str(folder)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.count("updated in")


def check_trained(replica: Replica, before: Sequence[dict[str, str]], folder: Path) -> None:
    """See that the server has what the trainer has saved, and not what it had before."""
    trained = replica.checksums()
    assert trained != before
    saved = load_file(folder / "model.safetensors")
    bring([replica], saved, "from the files", Mapping.of(rules.Cast("BF16")))
    assert replica.checksums() == trained


def test_given_grpo_on_two_cores_then_the_server_has_what_was_trained(started: Started, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="trl is not installed")
    replica = started.start("qwen3", 1, LOGPROBS).wait()
    before = replica.checksums()
    assert train("examples.trainers.trl_grpo", replica.checkpoint(1), replica, tmp_path) == 3
    assert replica.version() == "sync-3"
    check_trained(replica, before, tmp_path)
    started.stop(replica)


def test_given_grpo_whose_rollouts_go_on_then_each_step_comes_by_vllms_own_weight_transfer(
    started: Started, checkpoints: Path, tmp_path: Path
) -> None:
    templates = pytest.importorskip("trl.chat_template_utils", reason="trl is not installed")
    model = tmp_path / "model"
    shutil.copytree(checkpoints / "qwen3-1", model)
    (model / "chat_template.jinja").write_text(templates.qwen3_chat_template)
    named = (*LOGPROBS, f"--served-model-name={model}")
    replica = started.start("qwen3", 1, named, way_in=NATIVE, directory=model).wait()
    before = replica.checksums()
    assert train("tests.vllm.trl_on_cpus", model, replica, tmp_path / "trained") == 4
    assert replica.version() == "sync-4"
    check_trained(replica, before, tmp_path / "trained")
    started.stop(replica)
