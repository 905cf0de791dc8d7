"""``ckpt-transport rollback`` has sinks serve the version before again."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from ckpt_transport.cli.options import (
    KEEP,
    AsJson,
    ConfigFile,
    Draft,
    Endpoints,
    EndpointTimeout,
    Engine,
    OptionsError,
    Pause,
    check_for_endpoints,
    check_together,
)
from ckpt_transport.cli.output import after_commit

if TYPE_CHECKING:
    from ckpt_transport.cli.bringing import Driven
    from ckpt_transport.cli.outcome import Teller
    from ckpt_transport.config import Config


def rollback(
    addresses: Annotated[
        list[str] | None, typer.Argument(help="Addresses of sinks.", show_default="from settings")
    ] = None,
    engine: Engine = None,
    endpoint: Endpoints = None,
    pause: Pause = KEEP,
    draft: Draft = False,
    endpoint_timeout: EndpointTimeout = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Have every sink serve the version before again, which it has kept; everywhere or nowhere.

    A sink keeps the version before when the one that it serves was staged, until the next one comes. No byte moves
    between processes, and forward passes are held only for the exchange. A second rollback goes forward again:

        ckpt-transport rollback --engine vllm --endpoint http://127.0.0.1:8000
    """
    from ckpt_transport.cli.bringing import INCOMPLETE, Driven
    from ckpt_transport.cli.outcome import Json, Words
    from ckpt_transport.config import Config

    settings = Config.load(config, sinks=addresses or None, endpoint_timeout=endpoint_timeout)
    check_together(engine, endpoint)
    if engine is not None and addresses:
        raise OptionsError("give addresses of sinks, or --engine and --endpoint, not both")
    check_for_endpoints(engine, pause, draft)
    driven = None if engine is None else Driven(engine, tuple(endpoint or ()), pause, draft)
    if _roll_back(settings, driven, Json() if as_json else Words()):
        raise typer.Exit(INCOMPLETE)


def _roll_back(settings: Config, driven: Driven | None, teller: Teller) -> bool:
    """Roll back, and tell what happened; whether there were problems."""
    from ckpt_transport.service import ParameterServer

    with ParameterServer(settings, rank=0, world_size=1) as server:
        if driven is None:
            report = server.rollback()
            problems = report.lost
            with after_commit("its report cannot be shown"):
                teller.rollback(report)
        else:
            with closing(driven.fleet(settings)) as fleet:
                done = fleet.rollback(server)
            problems = done.problems
            with after_commit("its report cannot be shown"):
                teller.fleet_rollback(done)
        with after_commit("its report cannot be shown"):
            teller.end(problems)
    return bool(problems)
