"""Given kinds of models, when what their loaders do is replayed, then nothing tells them from ones that start so."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAMILIES = ("gpt2", "phi3", "gemma3", "gpt_oss", "granite_hybrid", "llama4")
"""Transposed, fused on disk, tied, and scaled; experts in one tensor, with biases; hybrid; experts that are transposed.
``python -m tests.vllm.recorded`` checks more."""


@pytest.mark.parametrize("family", FAMILIES)
def test_given_a_replay_then_it_leaves_what_a_fresh_start_loads(family: str) -> None:
    command = [sys.executable, "-m", "tests.vllm.recorded", "--family", family]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert f"{family}: exact; by the loader: nothing" in done.stdout
