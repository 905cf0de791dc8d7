"""``gloo``: broadcast over TCP between CPUs, on any machine that has torch."""

from ckpt_transport_gloo.plugin import GlooTransport

__all__ = ["GlooTransport"]
