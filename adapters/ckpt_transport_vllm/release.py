"""Reads which release of vLLM something is."""

from __future__ import annotations

import re


def release_of(version: str) -> tuple[int, int] | None:
    """The major and minor number of a version, as of ``0.32.0+cpu``; None where it has none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return None if found is None else (int(found[1]), int(found[2]))
