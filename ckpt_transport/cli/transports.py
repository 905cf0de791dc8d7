"""``ckpt-transport transports``: which transports there are, and whether they can run here."""

from __future__ import annotations

import sys

import msgspec
from rich.console import Console
from rich.table import Table

from ckpt_transport import registry
from ckpt_transport.cli.options import AsJson
from ckpt_transport.errors import PluginError
from ckpt_transport.transport import Traits


class Listed(msgspec.Struct, frozen=True):
    """One transport as the command lists it."""

    name: str
    available: bool
    reason: str
    cure: str
    traits: Traits | None


def transports(as_json: AsJson = False) -> None:
    """List every transport plugin: can it run here, and if not, why and what to do."""
    listed = [_look_at(name) for name in registry.names()]
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(listed)) + b"\n")
        return
    table = Table("name", "available", "reach", "maps", "sends from", "fan-out", "GB/s", "µs")
    for item in listed:
        traits = item.traits
        state = (
            "[green]yes[/]"
            if item.available
            else f"[red]no[/]: {item.reason}" + (f"\n{item.cure}" if item.cure else "")
        )
        details = (
            [
                traits.reach.value,
                "yes" if traits.maps_memory else "no",
                ", ".join(sorted(traits.sends_from)),
                traits.fan_out.value,
                f"{traits.bandwidth / 1e9:g}",
                f"{traits.latency * 1e6:g}",
            ]
            if traits
            else [""] * 6
        )
        table.add_row(item.name, state, *details)
    Console().print(table)


def _look_at(name: str) -> Listed:
    try:
        state = registry.available(name)
        traits = registry.load(name).traits if state.ok else None
    except PluginError as error:
        return Listed(name, False, str(error), "", None)
    return Listed(name, state.ok, state.reason, state.hint, traits)
