"""Commands that show a page load what it is made of, or say what is missing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from ckpt_transport.cli.output import Output
from ckpt_transport.errors import ConfigError

if TYPE_CHECKING:
    from ckpt_transport.config import Config
    from ckpt_transport.dashboard import PageServer


def load_dashboard() -> ModuleType:
    """Load :mod:`ckpt_transport.dashboard`.

    Raises:
        ConfigError: what it needs is not installed.
    """
    try:
        return importlib.import_module("ckpt_transport.dashboard")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("ckpt_transport"):
            raise
        raise ConfigError(
            f"the dashboard needs {error.name}, which is not installed: pip install 'ckpt-transport[dashboard]'"
        ) from error


@contextmanager
def shown_by(server: PageServer | None, member: str, settings: Config) -> Iterator[None]:
    """Show a member, and the sinks of the settings, while the block runs; nothing where no server is given."""
    if server is None:
        yield
        return
    page = load_dashboard()
    watch = page.FleetWatch((member, *settings.sinks), settings)
    app = page.make_app(watch, settings.history, None, local=server.local)
    try:
        with server.beside(app):
            Output().print(f"the fleet is shown at {server.url}", soft_wrap=True, highlight=False)
            yield
    finally:
        server.close()
