"""Places in which a coordinator's process can stand still."""

from __future__ import annotations

from typing import Any

from ckpt_transport.update import messages as m
from ckpt_transport.update.membership import Membership
from tests.patience import STOPPED
from tests.standing_still import freeze, stop_myself


def between_commits() -> None:
    """Stand still, until thawed, when the first of the members has committed, and no other has been told to."""
    tell = Membership.send
    told = []

    def send(self: Membership, rank: int, message: Any) -> None:
        tell(self, rank, message)
        if isinstance(message, m.Commit):
            told.append(rank)
            if len(told) == 1:
                while not self.has_ended(rank):
                    self.hear(0.05)
                freeze()

    Membership.send = send  # type: ignore[method-assign]


def after_commits() -> None:
    """Stand still when all have been told to commit."""
    tell = Membership.tell

    def send_all(self: Membership, message: Any, ranks: Any) -> None:
        tell(self, message, ranks)
        if isinstance(message, m.Commit):
            stop_myself(STOPPED)

    Membership.tell = send_all  # type: ignore[method-assign]
