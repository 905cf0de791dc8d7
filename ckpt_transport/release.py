"""Which release of this library is running."""

from __future__ import annotations

from importlib import metadata

DISTRIBUTION = "ckpt-transport"


def _release() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "not installed"


RELEASE = _release()
"""As ``0.2.0``; ``not installed`` where the code is used from a folder."""
