"""``ckpt-transport warm-up`` has engines do ahead what their first update would do."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from ckpt_transport.cli.options import AsJson, ConfigFile, EndpointTimeout
from ckpt_transport.cli.output import Output


def warm_up(
    engine: Annotated[str, typer.Option(help="The kind of engine at the endpoints, as 'vllm'.", show_default=False)],
    endpoint: Annotated[
        list[str],
        typer.Option(help="An engine's URL, as http://127.0.0.1:8000; may be given many times.", show_default=False),
    ],
    draft: Annotated[
        bool,
        typer.Option("--draft", help="Warm up the draft models that the engines speculate with, and not their own."),
    ] = False,
    endpoint_timeout: EndpointTimeout = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Have running engines do, while they serve, what their first update would do; and wait for that.

    Loaders are recorded and kernels compiled:

        ckpt-transport warm-up --engine vllm --endpoint http://127.0.0.1:8000

    No request is held meanwhile.
    """
    from ckpt_transport.config import Config
    from ckpt_transport.service.fleet import make_fleet

    settings = Config.load(config, endpoint_timeout=endpoint_timeout)
    output = Output()
    fleet = make_fleet(engine, endpoint, settings, "keep", draft)
    try:
        done = fleet.warm_up()
        if as_json:
            output.write_bytes(msgspec.json.format(msgspec.json.encode(done)))
            return
        for said in done.values():
            output.print(said, highlight=False, soft_wrap=True)
    finally:
        fleet.close()
