"""A member that listens learns by a challenge that an invitation comes from where it says.

The sender of a message is only its word. So an invitation is answered by a nonce, sent to the address that it claims to
come from; it counts when it comes again with that nonce, and so does everything that the coordinator says after it.
Nothing is remembered of invitations that do not count: the nonce follows from a key, the address and the update.
"""

from __future__ import annotations

import hashlib
import secrets
from hmac import compare_digest

from ckpt_transport.update import messages as m


class Challenges:
    """Makes and checks nonces for those who invite."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def nonce(self, coordinator: str, update: str) -> str:
        """What an invitation to ``update`` from that address carries; nobody else can tell it."""
        text = f"{coordinator}\0{update}".encode()
        return hashlib.blake2b(text, key=self._key, digest_size=16).hexdigest()

    def is_met(self, coordinator: str, invite: m.Invite) -> bool:
        """Whether who invites has read the nonce at that address."""
        return compare_digest(invite.nonce.encode(), self.nonce(coordinator, invite.update).encode())

    def renew(self) -> None:
        """An update is over: no invitation of before counts a second time."""
        self._key = secrets.token_bytes(32)
