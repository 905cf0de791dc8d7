"""A process serves its metrics over HTTP, where Prometheus scrapes them."""

from __future__ import annotations

import errno
import threading
from functools import cache

from prometheus_client import start_http_server

from ckpt_transport.errors import ConfigError
from ckpt_transport.events import observe
from ckpt_transport.metrics.prometheus import Metrics

PORTS = 64
"""How many ports are tried: ranks of one host are given the same setting."""
_lock = threading.Lock()
_served: dict[str, str] = {}


def export(address: str) -> str:
    """Count what becomes of versions in this process from now on, and serve it at ``http://ADDRESS/metrics``.

    Args:
        address: ``HOST:PORT``. Where another process has that port, the next that is free is taken.

    Returns: where it is served. A second call with the same address changes nothing.

    Raises:
        ConfigError: it is no address of this host, or no port is free.
    """
    with _lock:
        if address not in _served:
            _served[address] = _serve(address)
            count()
        return _served[address]


@cache
def count() -> None:
    """Count what becomes of versions in this process from now on, among the metrics that it has already."""
    observe(Metrics())


def _serve(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"metrics is '{address}' and must be HOST:PORT, as '127.0.0.1:9464'")
    for number in range(int(port), min(int(port) + PORTS, 1 << 16)):
        try:
            start_http_server(number, host.strip("[]"))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            raise ConfigError(f"metrics cannot be served at {host}:{number}: {error.strerror or error}") from error
        return f"{host}:{number}"
    raise ConfigError(f"metrics cannot be served at {address}: that port and the next {PORTS - 1} are taken")
