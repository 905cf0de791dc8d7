"""This module makes HTTP clients of engines, and finds the proxy through which they are reached."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from ckpt_transport.errors import ConfigError
from ckpt_transport.private_file import read_private

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy is named by the environment.

    Attributes:
        url: where it is; may hold a password.
        variable: the variable of the environment that names it.
    """

    url: str
    variable: str

    def __str__(self) -> str:
        """Where it is and who says so, without a password."""
        parts = urlsplit(self.url)
        return f"the proxy {parts.scheme}://{parts.netloc.rpartition('@')[2]} ({self.variable} in the environment)"


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only be this one: ``localhost``, ``127.0.0.1``, ``::1``, ``0.0.0.0`` and their like."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def proxy_for(url: str) -> Proxy | None:
    """Find the proxy through which ``url`` is reached: the environment's, as curl reads it.

    None for this host, whatever the environment says, and for hosts that ``NO_PROXY`` names.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host):
        return None
    proxies = getproxies_environment()
    if proxy_bypass(host) or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    for kind in (parts.scheme, "all"):
        named = proxies.get(kind)
        if named:
            variables = [name for name, value in os.environ.items() if name.lower() == f"{kind}_proxy" and value]
            return Proxy(named if "://" in named else f"http://{named}", max(variables, key=str.islower))
    return None


class ApiKey:
    """Puts the key that a file holds into each request, so that a key is changed without a restart.

    Args:
        path: of a file that only its owner can read.

    Raises:
        ConfigError: it cannot be read, others can read it, or what it holds is no key; says nothing of what it holds.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._key()

    def __call__(self, request: httpx.Request) -> httpx.Request:
        """Authorize a request."""
        request.headers["Authorization"] = f"Bearer {self._key()}"
        return request

    def _key(self) -> str:
        content = read_private(self._path, "api_key_file")
        if not content or any(not 0x21 <= byte <= 0x7E for byte in content):
            raise ConfigError(f"api_key_file {self._path} must hold one key, of printable characters, and nothing else")
        return content.decode("ascii")


def check_url(url: str) -> None:
    """
    Raises:
        ConfigError: a URL holds a password, which everybody on the host would see among a command's arguments.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        raise ConfigError(f"{shown} was given with a user or a password; put an API key in a file: api_key_file")


def client_of(url: str, timeout: float, api_key_file: str = "") -> httpx.Client:
    """Make a client of the server at ``url``, which goes through :func:`proxy_for` of it.

    Args:
        url: as ``http://127.0.0.1:8000``.
        timeout: of a request, in seconds.
        api_key_file: the file with the key that each request carries; none when empty.

    Raises:
        ConfigError: ``url`` is none or holds a password, its proxy or its key cannot be used, or httpx is missing; says
            what to install or to unset.
    """
    try:
        import httpx
    except ImportError as error:
        raise ConfigError(
            f"{url} is reached over HTTP, which needs the package httpx: pip install 'ckpt-transport[http]'"
        ) from error
    try:
        check_url(url)
        if not url.lower().startswith(("http://", "https://")):
            raise ValueError("it begins with neither http:// nor https://")
        proxy, _ = proxy_for(url), urlsplit(url).port  # which raises for a port that no socket can have
        transport = httpx.HTTPTransport(proxy=None if proxy is None else proxy.url)
        auth = ApiKey(Path(api_key_file)) if api_key_file else None
        return httpx.Client(base_url=url, timeout=timeout, transport=transport, auth=auth)
    except ImportError as error:
        raise ConfigError(
            f"{url} would be reached through {proxy}, which needs the package socksio: pip install 'httpx[socks]', "
            "or unset that variable, or name the engine's host in NO_PROXY"
        ) from error
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigError(f"{url} cannot be asked ({error}); give a URL as http://127.0.0.1:8000") from error
