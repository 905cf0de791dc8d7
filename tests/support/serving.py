"""What servers have in common that tests and demonstrations start as child processes."""

from __future__ import annotations

from pathlib import Path


class ServeError(RuntimeError):
    """The server did not start, or refused a request."""


def last_words(log: Path) -> str:
    """The end of what a server's processes wrote."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:])
