"""The page about settings, those of transports included."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import distribution

from ckpt_transport import config
from ckpt_transport.transports import options, registry
from docs.rendering import page, prose, table

OWN_TRANSPORTS = {entry.name for entry in distribution("ckpt-transport").entry_points if entry.group == registry.GROUP}


def configuration() -> str:
    rows = [
        (f"`{name}`", kind, f"`{default}`" if default else "empty", meaning, _variable(name))
        for name, kind, default, meaning in config.describe()
    ]
    return page(
        "Settings",
        prose(config.__doc__ or ""),
        table(("setting", "type", "default", "meaning", "environment variable"), rows),
        f"`{config.ENV_FILE}` names the TOML file. Times are seconds; sizes are bytes, or text such as `64MiB`.",
        "## Settings of transports",
        prose(options.__doc__ or ""),
        *_own_settings(),
    )


def _variable(name: str) -> str:
    return "see below" if name == config.TRANSPORTS else f"`{config.ENV_PREFIX}{name.upper()}`"


def _own_settings() -> Iterator[str]:
    """A table for each transport of this distribution that has settings of its own."""
    for name in registry.names():
        transport = registry.load(name) if name in OWN_TRANSPORTS else None
        rows = list(options.describe(transport)) if transport is not None else []
        if rows:
            variable = f"{config.ENV_PREFIX}{name.upper()}_"
            yield f"### {name}"
            yield table(
                ("setting", "default", "meaning", "environment variable"),
                [
                    (f"`{setting}`", f"`{default}`" if default else "empty", meaning, f"`{variable}{setting.upper()}`")
                    for setting, default, meaning in rows
                ],
            )
