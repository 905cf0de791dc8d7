"""``ckpt-transport dashboard`` shows a fleet in a browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ckpt_transport.cli.options import (
    KEEP,
    ConfigFile,
    Endpoints,
    Engine,
    OptionsError,
    check_together,
)
from ckpt_transport.cli.output import Output, say_on_stderr

if TYPE_CHECKING:
    from ckpt_transport.cli.bringing import Driven
    from ckpt_transport.config import Config


def dashboard(
    addresses: Annotated[
        list[str] | None, typer.Argument(help="Addresses of sinks and holders.", show_default="from settings")
    ] = None,
    engine: Engine = None,
    endpoint: Endpoints = None,
    history: Annotated[
        Path | None,
        typer.Option(help="The file in which trainers keep what became of updates.", show_default="from settings"),
    ] = None,
    listen: Annotated[
        str, typer.Option(help="Where to show it, as HOST:PORT; only this host reaches the default.")
    ] = "127.0.0.1:8642",
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="A file with a token, which only its owner can read. Who types the token may roll back; without it "
            "the page only shows.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Show a fleet in a browser, until it is interrupted: who serves what, the update that runs, and those before.

    Members are asked while somebody looks:

        ckpt-transport dashboard ADDRESS ADDRESS --history /var/lib/ckpt-transport/history.jsonl

        ckpt-transport dashboard --engine vllm --endpoint http://127.0.0.1:8000

    It needs the extra 'dashboard' of ckpt-transport.
    """
    from ckpt_transport.cli.bringing import Driven
    from ckpt_transport.cli.page import load_dashboard
    from ckpt_transport.config import Config

    check_together(engine, endpoint)
    if engine is not None and addresses:
        raise OptionsError("give addresses of sinks, or --engine and --endpoint, not both")
    page = load_dashboard()
    settings = Config.load(config, sinks=addresses or None, history=history)
    driven = None if engine is None else Driven(engine, tuple(endpoint or ()), KEEP, draft=False)
    rollback = None
    if token_file is not None:
        rollback = page.Rollback(page.read_token(token_file), lambda: _roll_back(settings, driven))
    sinks = settings.sinks if driven is None else ()
    watch = page.FleetWatch(sinks, settings, engine, () if driven is None else driven.endpoints)
    server = page.PageServer(listen)
    app = page.make_app(watch, settings.history, rollback, local=server.local)
    Output().print(f"the fleet is shown at {server.url}", soft_wrap=True, highlight=False)
    if not server.local:
        say_on_stderr(
            f"whoever reaches {server.url} can read the page"
            + ("" if rollback is None else ", and the token crosses the network as it is typed: put TLS in front of it")
        )
    try:
        server.serve(app)
    finally:
        server.close()


def _roll_back(settings: Config, driven: Driven | None) -> Sequence[str]:
    """Roll back; returns what went wrong afterwards."""
    from contextlib import closing

    from ckpt_transport.service import ParameterServer

    with ParameterServer(settings, rank=0, world_size=1) as server:
        if driven is None:
            return server.rollback().lost
        with closing(driven.fleet(settings)) as fleet:
            return fleet.rollback(server).problems
