"""This module makes HTTP clients of engines, and finds the proxy through which they are reached."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from ckpt_transport.errors import ConfigError

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


def client_of(url: str, timeout: float) -> httpx.Client:
    """Make a client of the server at ``url``, which goes through :func:`proxy_for` of it.

    Args:
        url: as ``http://127.0.0.1:8000``.
        timeout: of a request, in seconds.

    Raises:
        ConfigError: ``url`` is none, its proxy cannot be used, or httpx is missing; says what to install or to unset.
    """
    try:
        import httpx
    except ImportError as error:
        raise ConfigError(
            f"{url} is reached over HTTP, which needs the package httpx: pip install 'ckpt-transport[http]'"
        ) from error
    try:
        proxy, _ = proxy_for(url), urlsplit(url).port  # which raises for a port that no socket can have
        transport = httpx.HTTPTransport(proxy=None if proxy is None else proxy.url)
        return httpx.Client(base_url=url, timeout=timeout, transport=transport)
    except ImportError as error:
        raise ConfigError(
            f"{url} would be reached through {proxy}, which needs the package socksio: pip install 'httpx[socks]', "
            "or unset that variable, or name the engine's host in NO_PROXY"
        ) from error
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigError(f"{url} cannot be asked ({error}); give a URL as http://127.0.0.1:8000") from error
