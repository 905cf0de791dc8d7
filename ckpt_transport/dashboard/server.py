"""The application is served over HTTP, on this host unless told otherwise."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from ckpt_transport.errors import ConfigError
from ckpt_transport.service.endpoints import is_loopback

AT_ONCE = 64
"""Requests that are answered at the same time; others are told to come later."""


class PageServer:
    """Listens from the moment it is made, and answers while :meth:`serve` runs.

    Args:
        listen: ``HOST:PORT``; port 0 for any that is free.

    Raises:
        ConfigError: it is no address of this host, or somebody else listens there.
    """

    def __init__(self, listen: str) -> None:
        host, _, port = listen.rpartition(":")
        host = host.strip("[]")
        if not host or not port.isdigit() or int(port) >= 1 << 16:
            raise ConfigError(f"the dashboard is to listen at '{listen}', which must be HOST:PORT, as '127.0.0.1:8642'")
        self.local = is_loopback(host) and host not in ("0.0.0.0", "::")
        """Whether only this host reaches it."""
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, int(port)), family=family)
        except OSError as error:
            raise ConfigError(
                f"the dashboard cannot listen at {listen}: {error.strerror or error}; give another HOST:PORT"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"

    def serve(self, app: ASGIApp) -> None:
        """Answer requests until a signal ends the process."""
        self._server(app).run([self._socket])

    @contextmanager
    def beside(self, app: ASGIApp) -> Iterator[None]:
        """Answer requests on a thread of its own while the block runs."""
        server = self._server(app)
        thread = threading.Thread(target=server.run, args=([self._socket],), name="ckpt-transport-page", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()

    def close(self) -> None:
        """Listen no more. Idempotent."""
        self._socket.close()

    def _server(self, app: ASGIApp) -> uvicorn.Server:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            limit_concurrency=AT_ONCE,
            timeout_graceful_shutdown=None,
        )
        return uvicorn.Server(config)
