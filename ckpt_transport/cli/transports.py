"""``ckpt-transport transports`` lists the transports, and says whether they can run here."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from ckpt_transport.cli.options import AsJson
from ckpt_transport.cli.output import Output


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
    from ckpt_transport.cli.listing import list_all, show_list
    from ckpt_transport.cli.rates import measure_and_keep, say_whether_measured

    console = Output()
    if measure:
        measure_and_keep(console, as_json=as_json)
        return
    listed = list_all()
    if as_json:
        console.write_bytes(msgspec.json.format(msgspec.json.encode(listed)))
        return
    show_list(console, listed)
    say_whether_measured(console)
