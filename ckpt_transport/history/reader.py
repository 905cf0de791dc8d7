"""A history is read by another process than those that write it, again and again while it grows."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import msgspec

from ckpt_transport.decoding import UNREADABLE
from ckpt_transport.events import UpdateEnded
from ckpt_transport.history.entries import PastUpdate, Timeline
from ckpt_transport.history.writer import older

KEPT = 100
"""So many updates are remembered, the last ones."""
_decoder = msgspec.json.Decoder(UpdateEnded | Timeline)


class History:
    """The last updates that a file tells of. Any thread may ask; what was read once is not read again.

    Args:
        path: the file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._updates: dict[str, PastUpdate] = {}
        self._read: dict[int, int] = {}
        """How much of each file was read, by its inode: a full file goes on under another name."""
        self._reading = threading.Lock()

    def updates(self) -> list[PastUpdate]:
        """The last ones, the newest first.

        Raises:
            OSError: a file is there and cannot be read.
        """
        with self._reading:
            read: dict[int, int] = {}
            for path in (older(self._path), self._path):
                try:
                    read.update([self._read_on(path)])
                except FileNotFoundError:
                    continue
            self._read = read
            for update in list(self._updates)[:-KEPT]:
                del self._updates[update]
            return list(reversed(self._updates.values()))

    def find(self, update: str) -> PastUpdate | None:
        """The one of that name; None when it is not among the last ones, or unknown. Raises as :meth:`updates`."""
        self.updates()
        return self._updates.get(update)

    def _read_on(self, path: Path) -> tuple[int, int]:
        """Read the lines that have come since; the file's inode, and how much of it was read."""
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            start = self._read.get(status.st_ino, 0)
            if start > status.st_size:
                start = 0
            file.seek(start)
            *lines, rest = file.read().split(b"\n")
            for line in lines:
                self._take(line)
            return status.st_ino, file.tell() - len(rest)

    def _take(self, line: bytes) -> None:
        """Take in a line. One that is torn, or of a later release, is left out."""
        try:
            entry = _decoder.decode(line)
        except UNREADABLE:
            return
        if isinstance(entry, UpdateEnded):
            self._updates.setdefault(entry.update, PastUpdate(entry))
        elif entry.update in self._updates:
            self._updates[entry.update].timeline = entry
