"""``ckpt-transport transports`` lists the transports, and says whether they can run here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from ckpt_transport.cli.options import AsJson
from ckpt_transport.cli.output import Output
from ckpt_transport.cli.rates import measure_and_keep, say_whether_measured
from ckpt_transport.config import Config
from ckpt_transport.errors import PluginError
from ckpt_transport.transports import registry
from ckpt_transport.transports.interface import Reach, Traits
from ckpt_transport.update.bandwidths import bandwidths

DETAILS = ("reach", "maps", "sends from", "fan-out", "GB/s", "GB/s out", "µs")
LONGEST_WORD = {"sends from": len("private,")}
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


def transports(
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Measure the links of this host instead: memory, GPUs, loopback. Plans count on that from now on.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List every transport plugin: can it run here, and if not, why and what to do.

    GB/s is what a plan counts on within a host whose links were not measured, GB/s out what it counts on to other
    hosts, as RDMA devices here allow. Measure when the machine has nothing else to do: it takes a second or two, all
    cores, and up to 256 MiB of each GPU.
    """
    console = Output()
    if measure:
        measure_and_keep(console, as_json=as_json)
        return
    listed = [_look_at(name) for name in registry.names()]
    if as_json:
        console.write_bytes(msgspec.json.format(msgspec.json.encode(listed)))
        return
    table = _table(listed)
    least = console.measure(table, options=console.options.update(width=sys.maxsize)).minimum
    if least + EDGES <= console.width:
        console.print(table)
    else:
        _print_list(console, listed)
    for item in listed:
        if not item.available:
            cure = f"; {item.cure}" if item.cure else ""
            console.print(f"{item.name} cannot run here: {item.reason}{cure}", markup=False)
    say_whether_measured(console)


def _table(listed: Sequence[Listed]) -> Table:
    """A row for each transport. Only what consists of several words may be wrapped."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("name", "here", *DETAILS):
        table.add_column(heading, no_wrap=" " not in heading, min_width=LONGEST_WORD.get(heading))
    for item in listed:
        table.add_row(item.name, "[green]yes[/]" if item.available else "[red]no[/]", *_details(item))
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
