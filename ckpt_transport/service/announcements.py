"""A sink tells others where it is, and what it serves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ckpt_transport.control import Mailbox, addresses
from ckpt_transport.service import questions as q


class Announcements:
    """Holds what is to be announced until the sink's thread, which owns its mailbox, sends it."""

    def __init__(self) -> None:
        self._due: deque[str] = deque()
        self._last = ""

    def add(self, address: str) -> None:
        """Announce the sink to the mailbox at ``address``. From any thread.

        Raises:
            ConfigError: that is no address.
        """
        self._due.append(addresses.check(address))

    def send(self, mailbox: Mailbox, here: Callable[[], q.Here], coordinator: str) -> None:
        """Send what is due.

        Args:
            mailbox: the sink's.
            here: makes what is said.
            coordinator: of the last update, whose mailbox is not forgotten.
        """
        while self._due:
            address = self._due.popleft()
            if self._last not in ("", address, coordinator):
                mailbox.forget(self._last)
            self._last = address
            mailbox.send(address, here())
