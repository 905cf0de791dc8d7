"""An address says where a mailbox listens; this module makes, checks and removes them."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import secrets
import socket
import stat
import tempfile
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from ckpt_transport.errors import ConfigError, ControlError
from ckpt_transport.private_file import Stamp, stamp_of

MAX_IPC_PATH = 100
"""A UNIX socket's path fits about 107 bytes."""

ORPHAN_SECONDS = 60.0


def private_directory() -> Path:
    """Find the folder for this user's sockets: ``$XDG_RUNTIME_DIR/ckpt-transport``, else one in the temporary folder.

    Raises:
        ConfigError: somebody else owns it, or others may enter it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        directory = Path(runtime) / "ckpt-transport"
    else:
        directory = Path(tempfile.gettempdir()) / f"ckpt-transport-{os.getuid()}"
    if len(str(directory)) > MAX_IPC_PATH - 20:
        directory = Path("/tmp") / f"ckpt-transport-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ConfigError(f"{directory} must be a directory that only you can enter; remove it, or chmod 700 it")
    return directory


def new_ipc_address() -> str:
    """Make an unused address in this user's private folder, and remove what killed processes have left there."""
    directory = private_directory()
    for path in directory.iterdir():
        if _is_orphan(path):
            path.unlink(missing_ok=True)
    return f"ipc://{directory / secrets.token_hex(6)}"


def file_of(address: str) -> Stamp | None:
    """What tells the file at an ``ipc`` address from one that is put there later; None where there is none."""
    return stamp_of(Path(address.removeprefix("ipc://"))) if address.startswith("ipc://") else None


def remove(address: str, file: Stamp | None) -> None:
    """Remove a file at which nobody listens any more; another one that somebody has put there meanwhile stays.

    Args:
        address: where it lies.
        file: as :func:`file_of` has said when it was bound.
    """
    if file is not None and file_of(address) == file:
        Path(address.removeprefix("ipc://")).unlink(missing_ok=True)


def is_taken(address: str) -> bool:
    """Whether somebody listens at an ``ipc`` address, or a file that is no socket lies there; a bind removes either."""
    path = Path(address.removeprefix("ipc://"))
    return address.startswith("ipc://") and os.path.lexists(path) and not _is_abandoned(path)


def _is_orphan(path: Path) -> bool:
    """Whether ``path`` is a socket with no listener, and old enough not to be one that is just being made."""
    with contextlib.suppress(OSError):
        return time.time() - path.lstat().st_mtime > ORPHAN_SECONDS and _is_abandoned(path)
    return False


def _is_abandoned(path: Path) -> bool:
    """Whether ``path`` is a socket that nobody listens at."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return stat.S_ISSOCK(path.lstat().st_mode) and probe.connect_ex(str(path)) == errno.ECONNREFUSED
    return False


_LABEL = r"[A-Za-z0-9](?:[\w-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*", re.ASCII)
"""RFC 1123, and underscores, which networks of containers have in names."""


@lru_cache(maxsize=4096)
def check(address: str) -> str:
    """Check that a mailbox can have this address, and return it.

    Raises:
        ConfigError: it is not ``ipc://PATH`` or ``tcp://HOST:PORT``.
    """
    if re.fullmatch(r"ipc:///[^\0]+", address):
        if len(os.fsencode(address)) > MAX_IPC_PATH:
            raise ConfigError(f"{address} is longer than a socket's path may be ({MAX_IPC_PATH} characters)")
        return address
    tcp = re.fullmatch(r"tcp://(\*|[\w.-]{1,253}|\[[\w:.%]{2,80}\]):(\d{1,5})", address, re.ASCII)
    if tcp is not None and int(tcp[2]) < 1 << 16:
        if tcp[1] in ("*", "0.0.0.0", "[::]"):
            raise ConfigError(f"'{address}' is every interface; name the address of the one that others reach")
        if _is_host(tcp[1]):
            return address
    raise ConfigError(f"'{address}' is not an address; use ipc:///absolute/path, tcp://host:port or tcp://[IPv6]:port")


def _is_host(text: str) -> bool:
    """Whether it can be the name or the address of a host; an IPv6 address stands in brackets."""
    if not text.startswith("["):
        return _HOST_NAME.fullmatch(text) is not None
    try:
        return ipaddress.ip_address(text[1:-1]).version == 6
    except ValueError:
        return False


def any_port(interface: str) -> str:
    """Make a TCP address with any free port at an interface, given by its IPv4 or IPv6 address or by a host name.

    Of a name that has addresses of both families, an IPv4 address is taken.

    Raises:
        ConfigError: the name is not known.
    """
    try:
        found = socket.getaddrinfo(interface, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"interface '{interface}' is not an address or name of this host: {error}") from error
    named = [str(place[0]) for _, _, _, _, place in found]
    hosts = [interface] if ":" in interface else sorted(named, key=lambda host: ":" in host)
    return f"tcp://[{hosts[0]}]:0" if ":" in hosts[0] else f"tcp://{hosts[0]}:0"


def place_for(peers: Iterable[str], interface: str) -> str:
    """Where a mailbox is to listen for those at these addresses; empty for a UNIX socket that only this user reaches.

    Who listens at TCP on the loopback may be of another user, or in another container, and not get to such a socket. So
    one of these takes the mailbox to TCP for all, and all need the secret then.

    Args:
        peers: their addresses.
        interface: of this host, which other hosts reach.

    Raises: as :func:`any_port`.
    """
    over_tcp = _over_tcp(peers)
    if not over_tcp:
        return ""
    near = all(map(stays_on_host, over_tcp))
    return any_port(urlsplit(over_tcp[0]).hostname or interface if near else interface)


def serves(address: str, peers: Iterable[str], interface: str) -> bool:
    """Whether a mailbox at ``address`` is reached by all that reach one at :func:`place_for` these peers."""
    over_tcp = _over_tcp(peers)
    if not over_tcp or not stays_on_host(address):
        return True
    return address.startswith("tcp") and (_is_loopback(interface) or all(map(stays_on_host, over_tcp)))


def _over_tcp(peers: Iterable[str]) -> list[str]:
    return [peer for peer in peers if peer.startswith("tcp")]


def is_ipv6(address: str) -> bool:
    """Whether a mailbox's address is of IPv6, which ZeroMQ must be told. A host name stands for an IPv4 address."""
    return address.startswith("tcp://[")


def make_private(address: str) -> None:
    """Let nobody but this user connect to the ``ipc`` address that was just bound."""
    if address.startswith("ipc://"):
        Path(address.removeprefix("ipc://")).chmod(0o600)


def check_owner(address: str) -> None:
    """
    Raises:
        ControlError: another user listens at an ``ipc`` address.
    """
    if not address.startswith("ipc://"):
        return
    with contextlib.suppress(OSError):  # nobody is there yet
        owner = os.stat(address.removeprefix("ipc://")).st_uid
        if os.geteuid() not in (0, owner) and owner != 0:
            raise ControlError(
                f"{address} belongs to another user (uid {owner}), and UNIX sockets are for one user only"
            )


def stays_on_host(address: str) -> bool:
    """Whether only processes of this host can reach the address."""
    parts = urlsplit(address)
    if parts.scheme != "tcp":
        return True
    return _is_loopback(parts.hostname or "")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
