"""Anybody may ask a sink which version it serves."""

from __future__ import annotations

import time

from ckpt_transport.config import Config
from ckpt_transport.control.messages import Refused
from ckpt_transport.errors import JoinError
from ckpt_transport.service import questions as q
from ckpt_transport.update.mailbox import open_mailbox


def ask_version(address: str, config: Config | None = None, timeout: float = 5.0) -> q.ServedVersion:
    """Ask the sink at ``address`` what it serves. It answers on the same connection, also while it is being updated.

    Raises:
        ConfigError: that is no address.
        JoinError: nobody answered within ``timeout`` seconds.
    """
    config = config if config is not None else Config.load()
    deadline = time.monotonic() + timeout
    with open_mailbox("", q.COORDINATOR, config) as mailbox:
        mailbox.send(address, q.AskVersion())
        while (received := mailbox.receive(max(deadline - time.monotonic(), 0.0))) is not None:
            match received[1]:
                case q.ServedVersion():
                    return received[1]
                case Refused(reason=reason):
                    raise JoinError(f"{address} does not say what it serves: {reason}")
    raise JoinError(f"no answer from {address} within {timeout:g} s; is a sink running there?")
