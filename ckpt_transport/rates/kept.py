"""Rates are kept in a file of this user's, for the machine that they were measured on."""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import msgspec

from ckpt_transport.decoding import UNREADABLE, prepared
from ckpt_transport.errors import ConfigError
from ckpt_transport.rates.machine import Machine, machine
from ckpt_transport.rates.values import HostRates


class KeptRates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file says: which machine it is about, and how fast its links are."""

    machine: Machine
    rates: HostRates


def rates_path(of: Machine) -> Path:
    """The file for that machine: machines may share a home directory."""
    return _path(of, os.environ.get("XDG_CACHE_HOME", ""), os.environ.get("HOME", ""))


@lru_cache(maxsize=4)
def _path(of: Machine, cache: str, home: str) -> Path:
    """Where that is by these settings: asked for at each update."""
    name = hashlib.sha256(msgspec.msgpack.encode(of)).hexdigest()[:16]
    return Path(cache or Path.home() / ".cache") / "ckpt-transport" / f"rates-{name}.json"


def keep(rates: HostRates) -> Path:
    """Write the rates of this machine, so that readers see the old file or the new one; returns where they are.

    Raises:
        ConfigError: they cannot be written there.
    """
    path = rates_path(machine())
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    data = msgspec.json.format(msgspec.json.encode(KeptRates(machine(), rates)), indent=2) + b"\n"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        os.replace(fresh, path)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}; set XDG_CACHE_HOME to a folder of yours"
        ) from error
    return path


def kept() -> HostRates | None:
    """The rates of this machine; None when nobody has measured it. A file that says nothing of it counts as none."""
    try:
        return _decoded(rates_path(machine()).read_bytes())
    except (OSError, RuntimeError):  # RuntimeError: nobody knows this user's home
        return None


@lru_cache(maxsize=4)
def _decoded(data: bytes) -> HostRates | None:
    """What a file says of this machine. It seldom changes, and is asked for at each update."""
    try:
        found = msgspec.json.decode(data, type=prepared(KeptRates))
    except UNREADABLE:
        return None
    return found.rates if found.machine == machine() else None
