"""Given TRL's GRPO and a vLLM server, when it trains, then our client brings each step's weights to the server.

TRL and the 70 MB that it needs are not in the environment of ``make e2e``: ``pip install trl``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ckpt_transport import Mapping, rules
from tests.vllm.servers import PATIENCE, Started, bring

LOGPROBS = ("--logprobs-mode=processed_logprobs", "--max-logprobs=-1")
"""What TRL asks of a server."""


def test_given_grpo_on_two_cores_then_the_server_has_what_was_trained(started: Started, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="trl is not installed")
    replica = started.start("qwen3", 1, LOGPROBS).wait()
    before = replica.checksums()
    arguments = str(replica.checkpoint(1)), replica.url, str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "examples.trainers.trl_grpo", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("updated in") == 3
    assert replica.version() == "sync-3"
    trained = replica.checksums()
    assert trained != before
    saved = load_file(tmp_path / "model.safetensors")
    bring([replica], saved, "from the files", Mapping.of(rules.Cast("BF16")))
    assert replica.checksums() == trained
    started.stop(replica)
