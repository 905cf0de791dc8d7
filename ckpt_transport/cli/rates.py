"""``ckpt-transport transports --measure`` measures the links of this host, keeps the figures and shows them."""

from __future__ import annotations

import time

import msgspec
from rich import box
from rich.table import Table

from ckpt_transport.cli.output import Output
from ckpt_transport.rates import HostLink, HostRates, keep, kept, measure

SHOWN = 8
"""Characters of a GPU's UUID that people are shown."""


def measure_and_keep(output: Output, *, as_json: bool) -> None:
    """Measure all links, keep their rates for plans, and show them."""
    began = time.perf_counter()
    with Output(stderr=True).status("measuring the links of this host") as status:

        def told(link: HostLink, number: int, of: int) -> None:
            status.update(f"measuring link {number + 1} of {of}: {link.kind}{_ends(link)}")

        rates = measure(told)
    took = time.perf_counter() - began
    path = keep(rates)
    if as_json:
        output.write_bytes(msgspec.json.format(msgspec.json.encode(rates)))
        return
    output.print(_table(rates))
    if rates.bucket_seconds:
        output.print(f"a bucket costs this host {rates.bucket_seconds * 1e6:.0f} µs beside its bytes", highlight=False)
    output.print(f"measured in {took:.1f} s, kept in {path}", highlight=False, soft_wrap=True)


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
