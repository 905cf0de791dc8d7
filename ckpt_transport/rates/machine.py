"""A machine is known by what its rates depend on, as far as the kernel says it without touching a device."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

CPUINFO = Path("/proc/cpuinfo")
NVIDIA = Path("/proc/driver/nvidia")
BEGINNING = 4096
"""Bytes of ``/proc/cpuinfo`` that hold its first entry; the whole is long on a machine of many cores."""


class Machine(msgspec.Struct, frozen=True):
    """What rates depend on.

    Attributes:
        cpu: its model.
        cores: how many the machine has.
        gpus: UUIDs.
        driver: version of NVIDIA's; empty without one.
        library: version of this library, which measures.
    """

    cpu: str
    cores: int
    gpus: tuple[str, ...]
    driver: str
    library: str


@cache
def machine() -> Machine:
    """The machine that this process runs on."""
    return look_at(CPUINFO, NVIDIA)


def look_at(cpuinfo: Path, nvidia: Path) -> Machine:
    """The machine of which these files are."""
    model = _field(_read(cpuinfo), "model name") or platform.machine()
    gpus = (_field(_read(file), "GPU UUID") for file in nvidia.glob("gpus/*/information"))
    driver = _read(nvidia / "version").partition("\n")[0]
    return Machine(model, os.cpu_count() or 1, tuple(sorted(filter(None, gpus))), driver, _library())


def _library() -> str:
    try:
        return version("ckpt-transport")
    except PackageNotFoundError:
        return ""


def _field(text: str, name: str) -> str:
    """The value of a line such as ``model name : EPYC``; empty when there is none."""
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return ""


def _read(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(BEGINNING)
    except OSError:
        return ""
