"""HTTP is spoken with engines only: without httpx everything else works, and the error names the extra that has it."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_HTTPX = """
import sys
sys.modules["httpx"] = None
import ckpt_transport, ckpt_transport.cli, ckpt_transport_torch, ckpt_transport_fp8, ckpt_transport_vllm.fleet
from ckpt_transport import Config
from ckpt_transport.errors import ConfigError
from ckpt_transport_vllm import VllmFleet
try:
    VllmFleet(["http://127.0.0.1:8000"], Config.load())
except ConfigError as error:
    print(error)
"""


def test_given_no_httpx_when_an_engine_is_named_by_url_then_the_error_names_the_extra() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT_HTTPX], capture_output=True, text=True, timeout=250)
    assert ran.returncode == 0, ran.stderr
    assert "http://127.0.0.1:8000 is reached over HTTP" in ran.stdout
    assert "pip install 'ckpt-transport[http]'" in ran.stdout
