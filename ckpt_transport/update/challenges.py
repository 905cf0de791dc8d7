"""A member that listens learns by a challenge that an invitation comes from where it says.

The sender of a message is only its word. So an invitation is answered by a nonce, sent to the address that it claims to
come from; it counts when it comes again with that nonce, and so does everything that the coordinator says after it.
Nothing is remembered of invitations that do not count: the nonce follows from a key, the address and the update.

With its last word in an update that ended well a member says what the next invitation from the same address may
carry at once: its *welcome*. It is as good as a challenge that was sent there, and ends with the next update.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from hmac import compare_digest

import msgspec

from ckpt_transport.update import messages as m
from ckpt_transport.update.held_shares import ShareReader

ANY_UPDATE = ""
"""In place of the name of an update: a welcome is to the next one, which has no name yet."""


class Challenges:
    """Makes and checks nonces for those who invite."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def nonce(self, coordinator: str, update: str) -> str:
        """What an invitation to ``update`` from that address carries; nobody else can tell it."""
        text = f"{coordinator}\0{update}".encode()
        return hashlib.blake2b(text, key=self._key, digest_size=16).hexdigest()

    def welcome(self, coordinator: str) -> str:
        """What the next invitation from that address may carry, whichever update it is to."""
        return self.nonce(coordinator, ANY_UPDATE)

    def with_welcome(self, answer: m.Reply | None, coordinator: str) -> m.Reply | None:
        """An answer to that address; the last one of an update carries the welcome."""
        if isinstance(answer, m.Committed | m.Dismissed):
            return msgspec.structs.replace(answer, welcome=self.welcome(coordinator))
        return answer

    def is_met(self, coordinator: str, invite: m.Invite) -> bool:
        """Whether who invites has read the nonce at that address."""
        said = invite.nonce.encode()
        made = self.nonce(coordinator, invite.update), self.welcome(coordinator)
        return any(compare_digest(said, nonce.encode()) for nonce in made)

    def renew(self) -> None:
        """An update is over: no invitation of before counts a second time."""
        self._key = secrets.token_bytes(32)


class Welcomes:
    """What members have said to a coordinator that its next invitation may carry, by the address it goes to.

    Attributes:
        shares: reads what they need.
    """

    def __init__(self) -> None:
        self._kept: dict[str, str] = {}
        self.shares = ShareReader()

    def remember(self, address: str, welcome: str) -> None:
        """A member that is invited at ``address`` has said ``welcome``; empty where it has said nothing."""
        if welcome:
            self._kept[address] = welcome

    def take(self, addresses: Iterable[str]) -> dict[str, str]:
        """Those of these addresses. Whether the invitation comes or not, they are not used a second time."""
        kept, self._kept = self._kept, {}
        return {address: kept[address] for address in addresses if address in kept}
