"""Opens an engine's sink where whoever asks can reach it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ckpt_transport.config import Config
from ckpt_transport.control.addresses import any_port
from ckpt_transport.engine import Engine
from ckpt_transport.errors import ConfigError
from ckpt_transport.planning import TensorSpec
from ckpt_transport.service.sink import Sink
from ckpt_transport.update.host import host_of


def warm_up(sink: Sink, specs: Sequence[TensorSpec] | None) -> None:
    """Have a sink do in the background what its first update would do.

    Args:
        sink: of the engine.
        specs: the tensors that versions will have; None when nobody knows.

    Raises:
        ConfigError: it is not known what versions will look like.
    """
    if specs is None:
        raise ConfigError(
            f"{sink.label} cannot warm up: it was started without the files of a checkpoint, so nobody knows here what "
            "versions look like; its first update records its loader"
        )
    sink.warm_up(specs)


def listen(sink: Sink | None, host: str, version: str, make_engine: Callable[[], Engine]) -> Sink:
    """``sink`` if it can be reached, else a new one.

    Args:
        sink: the one that was opened before, if any.
        host: where the caller runs; empty for here. The sink listens on a UNIX socket when that is here.
        version: what is served now; of use only when ``sink`` does not know.
        make_engine: makes the way into the engine.

    Raises:
        ConfigError: a setting is wrong; or the sink would have to listen elsewhere, and is tainted or somebody drives
            its engine.
    """
    config = Config.load()
    near = host in ("", host_of(config))
    if sink is not None:
        if near or not sink.address.startswith("ipc"):
            return sink
        if sink.tainted:
            raise ConfigError(f"{sink.label} holds a mix of two versions; update it from its own host first")
        if sink.claim.holder:
            raise ConfigError(f"{sink.label} is driven by {sink.claim.leader} from its own host; wait until that ends")
        version = sink.version or version
        sink.close()
    opened = Sink(make_engine(), "" if near else any_port(config.interface), version, config)
    if sink is not None:
        opened.claim = sink.claim
    return opened.start()
