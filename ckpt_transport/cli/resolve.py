"""``ckpt-transport resolve`` tells a sink that is in doubt which version to serve."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from ckpt_transport.cli.options import AsJson, ConfigFile, OptionsError
from ckpt_transport.cli.output import Output


def resolve(
    address: Annotated[str, typer.Argument(help="Address of the sink.", show_default=False)],
    forward: Annotated[bool, typer.Option("--forward", help="It is to serve the new version.")] = False,
    back: Annotated[bool, typer.Option("--back", help="It is to serve what it did before.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 5.0,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Tell a sink that is in doubt which version to serve: the one that the other sinks of its update serve.

    A sink is in doubt when it has applied a staged version, its coordinator is gone, and no other sink answers it. It
    holds its requests until one does, or the next update comes. `ckpt-transport version` says who is in doubt, and what
    the others serve.
    """
    from ckpt_transport.config import Config
    from ckpt_transport.service.query import resolve as resolved

    if forward == back:
        raise OptionsError("give either --forward or --back")
    served = resolved(address, forward=forward, config=Config.load(config), timeout=timeout)
    if as_json:
        Output().write_bytes(msgspec.json.format(msgspec.json.encode({address: served})))
        return
    Output().print(f"{served.label} serves {served.version or '(not named)'}")
