"""Whoever serves or brings versions lets others watch that, where its settings say so."""

from __future__ import annotations

from ckpt_transport.config import Config
from ckpt_transport.errors import ConfigError
from ckpt_transport.logs import write_logs


def let_watch(config: Config) -> None:
    """Begin what the settings ask for: log lines, metrics, spans.

    Raises:
        ConfigError: ``metrics`` is no address of this host, or no port is free, or what is needed is not installed.
    """
    if config.log_format:
        write_logs(config.log_format)
    if config.metrics:
        _export_metrics(config.metrics)
    if config.opentelemetry:
        _make_spans()


def _export_metrics(address: str) -> None:
    try:
        from ckpt_transport.metrics import export
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"metrics is '{address}', and {error.name} is not installed: pip install 'ckpt-transport[metrics]'"
        ) from error
    export(address)


def _make_spans() -> None:
    try:
        from ckpt_transport.tracing import trace
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"opentelemetry is set, and {error.name} is not installed: pip install 'ckpt-transport[opentelemetry]'"
        ) from error
    trace()
