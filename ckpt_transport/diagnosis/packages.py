"""What is installed, and which transports can run with it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

from ckpt_transport.diagnosis.finding import Finding, Severity
from ckpt_transport.errors import PluginError
from ckpt_transport.transports import registry

NAMED = (
    "ckpt-transport",
    "torch",
    "vllm",
    "pyzmq",
    "triton",
    "mooncake-transfer-engine-cuda13",
    "mooncake-transfer-engine-non-cuda",
    "nixl-cu13",
    "ucxx-cu13",
    "cuda-bindings",
)
"""Distributions whose version whoever helps wants to know."""


def look() -> Iterator[Finding]:
    """Say which versions are installed."""
    found = {name: version for name in NAMED if (version := _version(name))}
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    yield Finding("packages", Severity.OK, f"Python {platform.python_version()}, {versions}")


def look_at_transports() -> Iterator[Finding]:
    """Look at each transport that is installed. One that is broken is a problem; one that cannot run here is not."""
    for name in registry.names():
        topic = f"transport {name}"
        try:
            state = registry.available(name)
        except PluginError as error:
            yield Finding(topic, Severity.PROBLEM, str(error), "uninstall the distribution that it names, or update it")
            continue
        if state.ok:
            yield Finding(topic, Severity.OK, state.reason or "can run here")
        else:
            yield Finding(topic, Severity.NOTE, f"cannot run here: {state.reason}", state.hint)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
