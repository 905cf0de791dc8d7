"""Variables of the environment, and which setting each stands for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from ckpt_transport.config.declared import TRANSPORTS
from ckpt_transport.errors import ConfigError
from ckpt_transport.transports import options

ENV_PREFIX = "CKPT_TRANSPORT_"
ENV_FILE = f"{ENV_PREFIX}CONFIG"

_SERVICE_LINK = re.compile(r"(?:.+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_.+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)")
"""What Kubernetes puts into every pod of a namespace that has a service called ckpt-transport."""


def meant_by(variable: str, settings: Sequence[str]) -> str | tuple[str, str] | None:
    """The setting an environment variable stands for, or a transport and its own setting; None when it is not ours.

    Args:
        variable: its name.
        settings: the names of all settings.

    Raises:
        ConfigError: it has our prefix and stands for nothing.
    """
    suffix = variable.removeprefix(ENV_PREFIX)
    if suffix == variable or variable == ENV_FILE or _SERVICE_LINK.fullmatch(suffix):
        return None
    if suffix.lower() in settings:
        if suffix == suffix.upper():
            return suffix.lower()
    elif option := options.named_by(suffix):
        return option
    close = difflib.get_close_matches(suffix.lower(), settings, n=1)
    suggestion = f"; did you mean {ENV_PREFIX}{close[0].upper()}?" if close else "."
    known = ", ".join(name.upper() for name in settings if name != TRANSPORTS)
    raise ConfigError(
        f"unknown environment variable {variable}{suggestion} After {ENV_PREFIX} may come: {known}, CONFIG, or "
        "the name of an installed transport and one of its settings"
    )
