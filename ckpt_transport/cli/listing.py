"""Transports are listed as a table, or as paragraphs where that does not fit."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ckpt_transport.config import Config
from ckpt_transport.errors import PluginError
from ckpt_transport.transports import registry
from ckpt_transport.transports.interface import Reach, Traits
from ckpt_transport.update.bandwidths import bandwidths

DETAILS = ("reach", "maps", "sends from", "fan-out", "GB/s", "GB/s out", "µs")
LONGEST_WORD = {"sends from": len("readable,")}
EDGES = 2
"""Columns of the terminal that rich's measure of a table leaves out."""


class Listed(msgspec.Struct, frozen=True):
    """A transport is listed with these facts.

    Attributes:
        name, available, reason, cure: whether it can run here; why not, and what helps.
        traits: what holds of it anywhere; None when it cannot run here.
        expected_bandwidth: bytes per second to other hosts that it counts on here, as it is configured.
    """

    name: str
    available: bool
    reason: str
    cure: str
    traits: Traits | None
    expected_bandwidth: float = 0.0


def list_all() -> list[Listed]:
    """Look at every transport that is installed."""
    return [_look_at(name) for name in registry.names()]


def show_list(console: Console, listed: Sequence[Listed]) -> None:
    """Print a row for each transport, and why those that cannot run here cannot."""
    table = _table(listed)
    least = console.measure(table, options=console.options.update(width=sys.maxsize)).minimum
    if least + EDGES <= console.width:
        console.print(table)
    else:
        _print_list(console, listed)
    for item in listed:
        if not item.available:
            cure = f"; {item.cure}" if item.cure else ""
            console.print(f"{item.name} cannot run here: {item.reason}{cure}")


def _table(listed: Sequence[Listed]) -> Table:
    """A row for each transport. Only what consists of several words may be wrapped."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("name", "here", *DETAILS):
        table.add_column(heading, no_wrap=" " not in heading, min_width=LONGEST_WORD.get(heading))
    for item in listed:
        table.add_row(item.name, Text("yes", "green") if item.available else Text("no", "red"), *_details(item))
    return table


def _print_list(console: Console, listed: Sequence[Listed]) -> None:
    """The same for a terminal that the table does not fit in: a paragraph for each transport."""
    for item in listed:
        console.print(f"{item.name}: {'yes' if item.available else 'no'}", highlight=False)
        details = [f"{name} {value}" for name, value in zip(DETAILS, _details(item), strict=False) if value]
        if details:
            console.print(Padding("; ".join(details), (0, 0, 0, 2)), highlight=False)


def _details(item: Listed) -> list[str]:
    traits = item.traits
    if traits is None:
        return []
    return [
        traits.reach.value,
        "yes" if traits.maps_memory else "no",
        ", ".join(sorted(traits.sends_from)),
        traits.fan_out.value,
        f"{traits.bandwidth / 1e9:g}",
        f"{item.expected_bandwidth / 1e9:g}" if traits.reach is Reach.NETWORK else "",
        f"{traits.latency * 1e6:g}",
    ]


def _look_at(name: str) -> Listed:
    try:
        state = registry.available(name)
        if not state.ok:
            return Listed(name, False, state.reason, state.hint, None)
        traits = registry.load(name).traits
    except PluginError as error:
        return Listed(name, False, str(error), "", None)
    return Listed(name, True, state.reason, state.hint, traits, bandwidths([name], Config.load())[name])
