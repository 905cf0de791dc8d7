"""Knows which releases of vLLM this adapter works with."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re

from ckpt_transport import ConfigError

FIRST, LAST = (0, 25), (0, 32)
"""The first and the last minor release that are supported; see the table in docs/reference/vllm-versions.md."""


def check_version(version: str) -> None:
    """Refuse releases of vLLM that this adapter does not know.

    Raises:
        ConfigError: this version of vLLM is not supported.
    """
    if not FIRST <= release(version) <= LAST:
        raise ConfigError(
            f"vLLM {version} is not supported: this adapter uses parts of vLLM that change between releases, and works "
            f"with {FIRST[0]}.{FIRST[1]} to {LAST[0]}.{LAST[1]}; install one of these, or a newer ckpt-transport"
        )


def release(version: str) -> tuple[int, int]:
    """The minor release a version belongs to, as ``(0, 32)``; ``(0, 0)`` for one without numbers."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found is not None else (0, 0)


def check_features() -> None:
    """Refuse builds of vLLM without what updates need.

    Raises:
        ConfigError: this build of vLLM lacks what updates need.
    """
    name = "vllm.model_executor.model_loader.reload"
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ConfigError(f"this vLLM has no layerwise reload ({name}), which updates need; install a newer one")


def installed_version() -> str:
    """The version of vLLM in this process."""
    import vllm

    version = str(vllm.__version__)
    return version if version[:1].isdigit() else importlib.metadata.version("vllm")
