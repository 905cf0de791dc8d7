"""``ckpt-transport transports --measure`` measures the links of this host, keeps the figures and shows them."""

from __future__ import annotations

import os
import time

import msgspec
from rich import box
from rich.table import Table

from ckpt_transport.cli.output import Output
from ckpt_transport.rates import HostLink, HostRates, keep, kept, measure

SHOWN = 8
"""Characters of a GPU's UUID that people are shown."""

IDLE = 0.5
"""A load for each core, of the last minute, that is not worth a word."""


def measure_and_keep(output: Output, *, as_json: bool) -> None:
    """Measure all links, keep their rates for plans, and show them."""
    load, began = os.getloadavg()[0], time.perf_counter()
    with Output(stderr=True).status("measuring the links of this host") as status:

        def told(link: HostLink, number: int, of: int) -> None:
            status.update(f"measuring link {number + 1} of {of}: {link.kind}{_ends(link)}")

        rates = measure(told)
    took = time.perf_counter() - began
    path = keep(rates)
    if caution := busy(load, len(os.sched_getaffinity(0))):
        Output(stderr=True).print(caution, highlight=False, soft_wrap=True)
    if as_json:
        output.write_bytes(msgspec.json.format(msgspec.json.encode(rates)))
        return
    output.print(_table(rates))
    if rates.bucket_seconds:
        output.print(f"a bucket costs this host {rates.bucket_seconds * 1e6:.0f} µs beside its bytes", highlight=False)
    output.print(f"measured in {took:.1f} s, kept in {path}", highlight=False, soft_wrap=True)


def busy(load: float, cores: int) -> str:
    """What to say when other programs kept the cores busy before links were measured; else nothing.

    Args:
        load: of the last minute, as the kernel has it.
        cores: that this process may use.
    """
    if load <= IDLE * cores:
        return ""
    noun = "core" if cores == 1 else "cores"
    return f"measured while the load was {load:.1f} on {cores} {noun}: measure again when the host is idle"


def say_whether_measured(output: Output) -> None:
    """Say whether plans know the links of this host."""
    known = kept()
    if known is None:
        told = "the links of this host were not measured, so plans count on the figures above; --measure does it"
    else:
        told = f"plans count on the measured rates of {len(known.links)} links of this host; --measure measures anew"
    output.print(told, highlight=False, soft_wrap=True)


def _table(rates: HostRates) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("link", "from", "to"):
        table.add_column(heading, no_wrap=True)
    table.add_column("GB/s", justify="right", no_wrap=True)
    for each in rates.links:
        source, target = each.link.source[:SHOWN], each.link.target[:SHOWN]
        table.add_row(each.link.kind.value, source, target, f"{each.rate / 1e9:.3g}")
    return table


def _ends(link: HostLink) -> str:
    return "".join(f" {name[:SHOWN]}" for name in (link.source, link.target) if name)
