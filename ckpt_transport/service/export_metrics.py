"""Whoever serves or brings versions exports metrics of that, where its settings say so."""

from __future__ import annotations

from ckpt_transport.config import Config
from ckpt_transport.errors import ConfigError


def export_metrics(config: Config) -> None:
    """
    Raises:
        ConfigError: ``metrics`` is no address of this host, or no port is free, or what it needs is not installed.
    """
    if not config.metrics:
        return
    try:
        from ckpt_transport.metrics import export
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"metrics is '{config.metrics}', and {error.name} is not installed: pip install 'ckpt-transport[metrics]'"
        ) from error
    export(config.metrics)
