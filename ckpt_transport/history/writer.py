"""Whoever leads an update appends what became of it to a file; several processes of a host may share the file.

Linux appends what one call writes to a local file as one piece, so no lock is needed for that. When the file is full,
it gets another name and a new one is begun. Only who holds the lock of the file may give it another name.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from ckpt_transport.errors import ConfigError
from ckpt_transport.events import UpdateEnded
from ckpt_transport.execution import StageEvent
from ckpt_transport.history.timeline import timeline_of
from ckpt_transport.paths import may_be_written, without_nul

FULL = 16 << 20
"""Bytes after which a new file is begun. The one before is kept: together they hold a few hundred updates at least."""
logger = logging.getLogger(__name__)


def older(path: Path) -> Path:
    """The name of the file that was full last."""
    return path.with_name(f"{path.name}.1")


def check_history(history: str) -> None:
    """Make the directory of a history, so that updates can be appended to it.

    Raises:
        ConfigError: that is not possible.
    """
    if not history:
        return
    path = without_nul(Path(history), ConfigError)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"history {path} cannot be written: {error.strerror}; choose another place") from error
    there = path if path.exists() else path.parent
    if not may_be_written(path) or not os.access(there, os.W_OK):
        raise ConfigError(f"history {path} cannot be a file that is written; choose another place for it")


def keep(history: str, ended: UpdateEnded, events: Sequence[StageEvent] = (), labels: Mapping[int, str] = {}) -> None:
    """Append what became of an update. If that fails, it is logged: the update has ended as it has.

    Args:
        history: the file; nothing is done where that is empty.
        ended: what became of it.
        events: every stage that has ended on every rank.
        labels: what people call each rank.
    """
    if not history:
        return
    try:
        timeline = timeline_of(ended.update, ended.at, events, labels)
        for entry in (ended,) if timeline is None else (ended, timeline):
            append(Path(history), msgspec.json.encode(entry))
    except OSError as error:
        logger.warning("what became of '%s' cannot be appended to %s: %s", ended.version, history, error)


def append(path: Path, line: bytes) -> None:
    """Append a line to a file, and begin a new file when that one is full.

    Raises:
        OSError: it cannot be written.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(file).st_size
        torn = size and os.pread(file, 1, size - 1) != b"\n"
        data = (b"\n" if torn else b"") + line + b"\n"
        written = os.write(file, data)
        if written < len(data):
            raise OSError(f"the disk has taken {written} of {len(data)} bytes")
        if size + written >= FULL:
            _rename(path, file)
    finally:
        os.close(file)


def _rename(path: Path, file: int) -> None:
    """Give a full file another name, unless somebody else does that now or has done it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file), path.stat()):
            path.replace(older(path))
