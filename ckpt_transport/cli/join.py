"""``ckpt-transport join``: bring a newly started engine to what the fleet beside it serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ckpt_transport.cli import served
from ckpt_transport.cli.options import BucketBytes, ConfigFile, Endpoints, EngineName, MemoryBudget, Transport
from ckpt_transport.cli.update import bring
from ckpt_transport.config import Config
from ckpt_transport.errors import CkptTransportError, ConfigError
from ckpt_transport.session.fleet import make_fleet


def join(
    endpoint: Endpoints,
    engine: EngineName = "vllm",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Where the weights are.", exists=True, show_default="that of the last update"),
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="What they are called.", show_default="that of the last update")
    ] = None,
    quantize_for: Annotated[
        Path | None,
        typer.Option(
            help="Quantize them on the way, for engines started from this directory, or with this config.json.",
            exists=True,
            show_default="as in the last update",
        ),
    ] = None,
    transport: Transport = None,
    bucket_bytes: BucketBytes = None,
    memory_budget: MemoryBudget = None,
    config: ConfigFile = None,
) -> None:
    """Bring a newly started engine to the version that the fleet serves. The others are not touched.

    Start it without weights, which is quick, and then join:

        vllm serve DIR --load-format dummy --worker-extension-cls ckpt_transport_vllm.WorkerExtension ...

        ckpt-transport join --endpoint http://127.0.0.1:8001

    Without --checkpoint and --version it is what 'ckpt-transport update --engine' brought last from this machine. That
    the fleet still serves it, and that the checkpoint has not changed since, is checked first.
    """
    settings = Config.load(config, transport=transport, bucket_bytes=bucket_bytes, memory_budget=memory_budget)
    if (checkpoint is None) != (version is None):
        raise ConfigError("give both --checkpoint and --version, or neither")
    if quantize_for is not None and checkpoint is None:
        raise ConfigError("--quantize-for belongs to --checkpoint; the last update is joined as it was")
    if checkpoint is None or version is None:
        known = _last_update(engine, settings)
        checkpoint, version = Path(known.checkpoint), known.version
        quantize_for = Path(known.quantized_for) if known.quantized_for else None
    bring(settings, checkpoint, version, engine, tuple(endpoint), "keep", quantize_for, draft=False)


def _last_update(engine: str, settings: Config) -> served.Served:
    """
    Raises:
        ConfigError: there was none, its checkpoint has changed, or the fleet has moved on.
    """
    known = served.recall()
    if known is None or known.engine != engine:
        raise ConfigError(
            f"no update of {engine} engines was made from here ({served.record_path()} says); give --checkpoint and "
            "--version"
        )
    served.check_unchanged(known)
    for endpoint in known.endpoints:
        fleet = make_fleet(engine, [endpoint], settings, "keep", False)
        try:
            (serves,) = fleet.versions()
        except CkptTransportError as error:
            Console(stderr=True).print(f"[yellow]{endpoint} is not asked[/]: {error}", soft_wrap=True, highlight=False)
            continue
        finally:
            fleet.close()
        if serves not in ("", known.version):
            raise ConfigError(
                f"{endpoint} serves '{serves}', and the last update from here brought '{known.version}'; give "
                "--checkpoint and --version"
            )
    return known
