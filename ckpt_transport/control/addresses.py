"""Where mailboxes listen."""

from __future__ import annotations

import ipaddress
import os
import secrets
import stat
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from ckpt_transport.errors import ConfigError

MAX_IPC_PATH = 100
"""A UNIX socket's path fits about 107 bytes."""


def private_directory() -> Path:
    """The folder for this user's sockets: ``$XDG_RUNTIME_DIR/ckpt-transport``, else one in the temporary folder.

    Raises:
        ConfigError: somebody else owns it, or others may enter it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        directory = Path(runtime) / "ckpt-transport"
    else:
        directory = Path(tempfile.gettempdir()) / f"ckpt-transport-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ConfigError(f"{directory} must be a directory that only you can enter; remove it, or chmod 700 it")
    return directory


def new_ipc_address() -> str:
    """An unused address in this user's private folder."""
    return f"ipc://{private_directory() / secrets.token_hex(6)}"


def check(address: str) -> str:
    """``address``, if a mailbox can have it.

    Raises:
        ConfigError: it is not ``ipc://PATH`` or ``tcp://HOST:PORT``.
    """
    parts = urlsplit(address)
    if parts.scheme == "ipc" and len(address) > len("ipc://"):
        if len(address) > MAX_IPC_PATH:
            raise ConfigError(f"{address} is longer than a socket's path may be ({MAX_IPC_PATH} characters)")
        return address
    if parts.scheme == "tcp" and parts.hostname and ":" in parts.netloc:
        return address
    raise ConfigError(f"'{address}' is not an address; use ipc:///absolute/path or tcp://host:port")


def stays_on_host(address: str) -> bool:
    """Whether only processes of this host can reach the address."""
    parts = urlsplit(address)
    if parts.scheme != "tcp":
        return True
    host = parts.hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
