"""This module opens mailboxes as the configuration wants them, and gives them the secret that its file holds now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ckpt_transport.config import Config
from ckpt_transport.control import Mailbox, Message
from ckpt_transport.control.security import Secret, SecretFile, check_secured
from ckpt_transport.errors import CkptTransportError
from ckpt_transport.memory import uninterrupted

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


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


def in_mailbox(
    address: str, types: Sequence[type[Message]], config: Config, act: Callable[[Mailbox], Result]
) -> Result:
    """Open a mailbox as :func:`open_mailbox` does, act, and close it. An interrupt may come at any step.

    Returns: what ``act`` does.

    Raises: as :func:`open_mailbox`, and what ``act`` raises.
    """
    opened: list[Mailbox] = []
    try:
        uninterrupted(lambda: opened.append(open_mailbox(address, types, config)))
        return act(opened[0])
    finally:
        try:
            for mailbox in opened:
                mailbox.close()
        except BaseException:
            for mailbox in opened:
                mailbox.close()
            raise


def check_ways(addresses: Sequence[str], config: Config) -> None:
    """Check that a mailbox with these settings may talk to ``addresses``, and open none.

    Raises:
        ConfigError: the secret cannot be used, or an address is open to others without one.
    """
    secret = Secret.load(Path(config.secret_file)) if config.secret_file else None
    for address in addresses:
        check_secured(address, secret, config.insecure)


class Rotation:
    """Has a mailbox use the secret that its file holds now, so that a secret is changed without a restart.

    Args:
        mailbox: that was opened with these settings.
        config: settings.
    """

    def __init__(self, mailbox: Mailbox, config: Config) -> None:
        self._mailbox = mailbox
        self._file = SecretFile(Path(config.secret_file)) if config.secret_file else None
        self._trouble = ""

    def look(self) -> None:
        """Look whether the file holds another secret, and use that. Not while an update runs: peers are cut off.

        Raises:
            ConfigError: the file holds no secret any more, or others can read it.
            ControlError: somebody else has taken the mailbox's address in that moment; look again.
        """
        if self._file is None or self._mailbox.secret == self._file.take():
            return
        self._mailbox.use(self._file.secret)
        logger.info("%s uses the new secret of its secret_file", self._mailbox.address)

    def tend(self) -> None:
        """Look; what is wrong is logged, once, and the mailbox goes on with the secret that it has."""
        try:
            self.look()
            self._trouble = ""
        except CkptTransportError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                logger.warning("%s goes on with the secret that it has: %s", self._mailbox.address, error)
