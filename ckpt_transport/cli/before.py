"""Commands check what they can before they read a checkpoint, which may take long."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_transport.config import Config
from ckpt_transport.service.fleet import make_fleet
from ckpt_transport.service.subset import check_sinks, chosen
from ckpt_transport.service.trace import check_trace
from ckpt_transport.update import available


def check_before(
    settings: Config, engine: str | None, endpoints: Sequence[str], pause: str, draft: bool, ranks: Sequence[int] | None
) -> None:
    """
    Raises:
        ConfigError: no sink or adapter is named that there is, or the trace cannot be written.
        PluginError: the transport that is asked for cannot run here.
    """
    available.check(settings)
    check_trace(settings)
    if engine is not None:
        make_fleet(engine, endpoints, settings, pause, draft).close()
        return
    check_sinks(settings.sinks)
    if ranks is not None:
        chosen(settings.sinks, ranks)
