"""Values that make sense alone and not together."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_transport.errors import ConfigError


def check_together(values: Mapping[str, object], sources: Mapping[str, str]) -> None:
    """Check settings that depend on each other.

    Args:
        values: of all settings, by name.
        sources: where each that was given came from.

    Raises:
        ConfigError: two of them do not fit.
    """
    _check_heartbeat(values, sources)
    if values["delta"] != "off" and values["commit"] == "in_place":
        raise ConfigError(
            f"'delta' is '{values['delta']}' and 'commit' is 'in_place'{_origin(sources, 'delta', 'commit')}: what has "
            "changed is staged, and never written while it comes; set commit to 'auto' or 'staged', or delta to 'off'"
        )


def _origin(sources: Mapping[str, str], *names: str) -> str:
    given = [f"'{name}' {sources[name]}" for name in names if name in sources]
    return f" ({', '.join(given)})" if given else ""


def _check_heartbeat(values: Mapping[str, object], sources: Mapping[str, str]) -> None:
    interval, timeout = values["heartbeat_interval"], values["heartbeat_timeout"]
    assert isinstance(interval, float)
    assert isinstance(timeout, float)
    if timeout <= interval:
        origin = _origin(sources, "heartbeat_interval", "heartbeat_timeout")
        raise ConfigError(
            f"'heartbeat_timeout' is {timeout:g} s and must be longer than 'heartbeat_interval', which is "
            f"{interval:g} s{origin}: a participant would count as dead before it can speak"
        )
