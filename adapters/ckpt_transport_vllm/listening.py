"""Opens a worker's sink where whoever asks can reach it."""

from __future__ import annotations

from collections.abc import Callable

from ckpt_transport import Config, ConfigError, Engine, Sink
from ckpt_transport.spi import any_port, host_name
from ckpt_transport_vllm.updated_model import UpdatedModel


def warm_up(sink: Sink, target: UpdatedModel) -> None:
    """Have a sink do in the background what its first update would do.

    Raises:
        ConfigError: it is not known what versions will look like.
    """
    specs = target.expects()
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
        make_engine: makes the way into the worker.

    Raises:
        ConfigError: a setting is wrong; or the sink would have to listen elsewhere, and is tainted or somebody drives
            its engine.
    """
    config = Config.load()
    near = host in ("", config.host or host_name())
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
