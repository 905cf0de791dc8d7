"""``ucx``: tagged messages through UCX, over whatever it finds between two processes."""

from ckpt_transport_ucx.plugin import UcxTransport

__all__ = ["UcxTransport"]
