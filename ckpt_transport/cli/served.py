"""A file records what the last update of a fleet brought, so that an engine that starts later can be brought to it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from ckpt_transport.checkpoint import from_path
from ckpt_transport.decoding import UNREADABLE, prepared
from ckpt_transport.errors import ConfigError


class FleetRecord(msgspec.Struct, frozen=True):
    """Says which version a fleet was brought to last, and from where.

    Attributes:
        engine: the kind of engine, as ``vllm``.
        version: its name.
        checkpoint: where it was read from.
        files: of the checkpoint, with size in bytes and time of the last change in nanoseconds.
        endpoints: the engines that were brought to it.
        quantized_for: what it was quantized for on the way; empty when it was not.
    """

    engine: str
    version: str
    checkpoint: str
    files: dict[str, tuple[int, int]]
    endpoints: tuple[str, ...]
    quantized_for: str = ""


def record_path() -> Path:
    """Find ``served.json`` in this user's state directory."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "ckpt-transport" / "served.json"


def remember(
    engine: str, version: str, checkpoint: Path, endpoints: tuple[str, ...], quantized_for: Path | None = None
) -> None:
    """Note a committed update. What was noted before is forgotten, unless it is of the same version."""
    before = recall()
    if before is not None and (before.engine, before.version) == (engine, version):
        endpoints = tuple(dict.fromkeys([*before.endpoints, *endpoints]))
    target = "" if quantized_for is None else str(quantized_for.resolve())
    served = FleetRecord(engine, version, str(checkpoint.resolve()), stamps(checkpoint), endpoints, target)
    path = record_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(served)))
    fresh.replace(path)


def recall() -> FleetRecord | None:
    """Read what was noted last, if anything."""
    try:
        return msgspec.json.decode(record_path().read_bytes(), type=prepared(FleetRecord))
    except (OSError, *UNREADABLE):
        return None


def check_unchanged(served: FleetRecord) -> None:
    """
    Raises:
        ConfigError: the checkpoint is not what it was when the fleet was updated.
    """
    checkpoint = Path(served.checkpoint)
    if not checkpoint.exists():
        raise ConfigError(f"{served.checkpoint}, which '{served.version}' was read from, is gone; give --checkpoint")
    if stamps(checkpoint) != served.files:
        raise ConfigError(
            f"{served.checkpoint} has changed since the fleet was updated to '{served.version}' from it; give "
            "--checkpoint and --version"
        )


def stamps(checkpoint: Path) -> dict[str, tuple[int, int]]:
    """Read size and time of the last change of every file of a checkpoint."""
    found = {file.path.name: file.path.stat() for file in from_path(checkpoint)}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}
