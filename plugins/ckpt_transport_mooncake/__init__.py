"""``mooncake``: sinks read the source's memory by RDMA or TCP, through Mooncake's transfer engine."""

from ckpt_transport_mooncake.plugin import MooncakeOptions, MooncakeTransport

__all__ = ["MooncakeOptions", "MooncakeTransport"]
