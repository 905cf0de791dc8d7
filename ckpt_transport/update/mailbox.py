"""This module opens mailboxes as the configuration wants them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckpt_transport.config import Config
from ckpt_transport.control import Mailbox, Message
from ckpt_transport.control.security import Secret


def open_mailbox(address: str, types: Sequence[type[Message]], config: Config) -> Mailbox:
    """Open a mailbox at ``address`` (empty for a new local one) with the configured secret and heartbeats.

    Raises: as :class:`~ckpt_transport.control.Mailbox` and :meth:`~ckpt_transport.control.security.Secret.load`.
    """
    return Mailbox(
        address,
        types,
        secret=Secret.load(Path(config.secret_file)) if config.secret_file else None,
        insecure=config.insecure,
        interval=config.heartbeat_interval,
        timeout=config.heartbeat_timeout,
    )
