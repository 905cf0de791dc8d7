"""A sink tells whoever watches when it serves another version, or must not serve."""

from __future__ import annotations

import time

from ckpt_transport.events import ServingChanged, tell


class TellsChanges:
    """Compares what a sink is with what it was when it was looked at last.

    Args:
        sink: its label.
    """

    def __init__(self, sink: str) -> None:
        self._sink = sink
        self._told: tuple[object, ...] = ()

    def look(self, update: str, version: str, tainted: str, in_doubt: str, staging_nbytes: int) -> None:
        """Tell it if something has changed; attributes as those of :class:`~ckpt_transport.events.ServingChanged`."""
        now = update, version, tainted, in_doubt, staging_nbytes
        if now != self._told:
            self._told = now
            tell(
                ServingChanged(
                    at=time.time(),
                    update=update,
                    sink=self._sink,
                    version=version,
                    tainted=tainted,
                    in_doubt=in_doubt,
                    staging_nbytes=staging_nbytes,
                )
            )
