"""Triton's interpreter runs kernels on memory of the host: ``TRITON_INTERPRET=1 python -m pytest tests/interpreted``.

``make e2e`` runs these tests in the environment of vLLM, which has Triton. Without it, and where kernels are compiled,
there are none.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

from ckpt_transport.memory import copy_table, strided_bytes
from tests.unhurried import hurry_no_example

hurry_no_example()
interprets = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton")
collect_ignore_glob = [] if interprets else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def small_tiles() -> Iterator[None]:
    """Tiles have few words, and blocks fewer, so that little data is cut often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strided_bytes, "TILE_WORDS", 50)
        patch.setattr(copy_table, "BLOCK", 16)
        yield
