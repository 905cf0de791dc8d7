"""Asking a sink which version it serves."""

from __future__ import annotations

from ckpt_transport.config import Config
from ckpt_transport.control import addresses
from ckpt_transport.errors import JoinError
from ckpt_transport.session import messages as m
from ckpt_transport.session.mailbox import open_mailbox


def ask_version(address: str, config: Config | None = None, timeout: float = 5.0) -> m.ServedVersion:
    """What the sink at ``address`` serves, also while it is being updated.

    Raises:
        JoinError: nobody answered within ``timeout`` seconds.
    """
    config = config if config is not None else Config.load()
    mine = "" if addresses.stays_on_host(addresses.check(address)) else addresses.any_port(config.interface)
    with open_mailbox(mine, m.COORDINATOR, config) as mailbox:
        mailbox.send(address, m.AskVersion())
        received = mailbox.receive(timeout)
    if received is None or not isinstance(received[1], m.ServedVersion):
        raise JoinError(f"no answer from {address} within {timeout:g} s; is a sink running there?")
    return received[1]
