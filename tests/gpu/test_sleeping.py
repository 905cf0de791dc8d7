"""vLLM's sleep mode takes memory away on GPUs only."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM")
@pytest.mark.timeout(900)
def test_given_a_vllm_that_sleeps_then_an_update_is_refused_until_its_weights_are_awake() -> None:
    ran = subprocess.run([sys.executable, "-m", "tests.vllm.sleeping"], capture_output=True, text=True, timeout=850)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("refused asleep, updated awake") == 2
