"""What this host's network can do."""

from __future__ import annotations

import errno
import socket


def has_ipv6() -> bool:
    """Whether processes of this host reach each other at ``::1``."""
    if not socket.has_ipv6:
        return False
    with socket.socket(socket.AF_INET6) as probe:
        return probe.connect_ex(("::1", 9)) != errno.EADDRNOTAVAIL
