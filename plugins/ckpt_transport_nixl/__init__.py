"""``nixl``: sinks read the source's memory through NIXL agents."""

from ckpt_transport_nixl.plugin import NixlTransport

__all__ = ["NixlTransport"]
