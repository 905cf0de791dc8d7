"""Mooncake has a build for machines with CUDA and one for those without. Each machine is told its own."""

from __future__ import annotations

import os
import subprocess
import sys

WITHOUT_MOONCAKE = """
import sys
sys.modules["mooncake"] = None
from ckpt_transport.transports import registry
state = registry.available("mooncake")
print(state.ok, state.reason, state.hint, sep="; ")
"""


def test_given_no_gpu_and_no_mooncake_then_the_cure_is_its_build_for_cpus() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_MOONCAKE],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == (
        "False; the Mooncake transfer engine is not installed; pip install mooncake-transfer-engine-non-cuda"
    )
