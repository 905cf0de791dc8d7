"""A source rank remembers which versions its calls have asked for, and which of them it has given up."""

from __future__ import annotations

import threading

INTERRUPTED = "it was interrupted, or has failed"
MOST_VERSIONS = 100
"""So many that were given up are remembered, the latest."""


class AskedVersions:
    """Says which versions this rank has given up, so that other ranks do not wait for it there."""

    def __init__(self) -> None:
        self._unbrought: dict[str, str] = {}
        """Versions that were asked for here and not brought, or not yet, and why not."""
        self._asking: dict[int, str] = {}
        """What the call of each thread has asked for. What an interrupt leaves here is overwritten by the next call."""

    def asks(self, version: str) -> None:
        """A call of this thread brings a version. It says so before anything that an interrupt could keep it from."""
        self._unbrought[version] = INTERRUPTED
        self._asking[threading.get_ident()] = version

    def has_ended(self) -> None:
        """The call of this thread has ended, in whatever way."""
        self._asking.pop(threading.get_ident(), None)
        for late in list(self._unbrought)[:-MOST_VERSIONS]:
            self._unbrought.pop(late, None)

    def gives_up(self, version: str, reason: str) -> None:
        """It is not brought; why."""
        self._unbrought[version] = reason

    def goes_on(self, version: str) -> None:
        """It was brought, or others may wait for it again."""
        self._unbrought.pop(version, None)

    def given_up_before(self, version: str) -> dict[str, str]:
        """The other versions that this rank has given up, and why: those for which no other call waits."""
        thread = threading.get_ident()
        others = {asked for each, asked in list(self._asking.items()) if each != thread}
        return {late: why for late, why in list(self._unbrought.items()) if late != version and late not in others}
