"""``ckpt-transport version``: which version sinks serve."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from ckpt_transport.cli.options import AsJson, ConfigFile
from ckpt_transport.config import Config
from ckpt_transport.session import ask_version


def version(
    addresses: Annotated[list[str], typer.Argument(help="Addresses of sinks.", show_default=False)],
    timeout: Annotated[float, typer.Option(help="Seconds to wait for each answer.")] = 5.0,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Ask sinks which version they serve. Exit code 3 when one must not serve, 1 when one does not answer."""
    settings = Config.load(config)
    answers = {address: ask_version(address, settings, timeout) for address in addresses}
    if as_json:
        rows = {address: msgspec.to_builtins(answer) for address, answer in answers.items()}
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(rows)) + b"\n")
    else:
        table = Table("address", "sink", "version", "state")
        for address, answer in answers.items():
            state = f"[red]tainted[/]: {answer.tainted}" if answer.tainted else "[green]serves[/]"
            if answer.update:
                state = f"being updated to {answer.update}"
            table.add_row(address, answer.label, answer.version or "(not named)", state)
        Console().print(table)
    if any(answer.tainted for answer in answers.values()):
        raise typer.Exit(3)
