"""Given nothing but this library, when the demonstration of FP8 runs, then it compares every byte and ends well."""

from __future__ import annotations

import subprocess
import sys


def test_given_bf16_weights_when_they_are_sent_as_fp8_then_half_the_bytes_travel_and_all_are_right() -> None:
    command = [sys.executable, "-m", "examples.fp8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every byte is what an independent quantization gives" in done.stdout
    assert "32 tensors: F8_E4M3 with a scale for each block of 128 x 128" in done.stdout
    assert "travelled (0.500)" in done.stdout
