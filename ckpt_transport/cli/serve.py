"""``ckpt-transport serve`` keeps a version available to engines that join."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from ckpt_transport.cli.options import AsJson, Checkpoint, ConfigFile, MemoryBudget, as_source
from ckpt_transport.cli.output import Output
from ckpt_transport.cli.progress import progress
from ckpt_transport.sizes import size


def serve(
    checkpoint: Checkpoint,
    version: Annotated[str, typer.Option(help="What the version is called, as 'step-42'.", show_default=False)],
    save_metas: Annotated[
        Path | None, typer.Option(help="Write there where this version can be had, for 'ckpt-transport join'.")
    ] = None,
    address: Annotated[
        str, typer.Option(help="Where to listen, as tcp://HOST:PORT.", show_default="a new one on this host")
    ] = "",
    dashboard: Annotated[
        str | None,
        typer.Option(
            help="Show this holder and the sinks of the settings in a browser, at HOST:PORT.", show_default=False
        ),
    ] = None,
    memory_budget: MemoryBudget = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Keep a checkpoint available to engines that join, until it is interrupted.

    It prints its address, and writes it to a file that engines join by:

        ckpt-transport serve --checkpoint DIR --version step-42 --save-metas step-42.json

        ckpt-transport join --metas step-42.json --endpoint http://127.0.0.1:8001

    Any number may be started, on any hosts: who joins reads from all of them at once. To be reached from another host,
    it needs an address there, and all need the same secret_file. Who joins chooses the transport.
    """
    from ckpt_transport.cli.page import load_dashboard, shown_by
    from ckpt_transport.config import Config
    from ckpt_transport.service import Holder
    from ckpt_transport.service.address_file import check_place

    settings = Config.load(config, memory_budget=memory_budget)
    if save_metas is not None:
        check_place(save_metas)
    server = None if dashboard is None else load_dashboard().PageServer(dashboard)
    console = Output(stderr=as_json)
    with progress(console, f"reading {checkpoint.name}") as shown:
        holder = Holder(version, **as_source(checkpoint), address=address, config=settings, progress=shown)
    with holder:
        metas = holder.address_file
        if save_metas is not None:
            metas.save(save_metas, settings)
        if as_json:
            told = {"version": version, "address": holder.address, "tensors": metas.tensors, "bytes": metas.nbytes}
            Output().write_bytes(msgspec.json.encode(told))
        console.print(
            f"{version} ({metas.tensors:,} tensors, {size(metas.nbytes)}) is held at {holder.address}",
            soft_wrap=True,
            highlight=False,
        )
        with shown_by(server, holder.address, settings):
            holder.serve()
