"""``acme-tcp``: a transport of another author, over plain TCP sockets."""

from .transport import AcmeTcpTransport

__all__ = ["AcmeTcpTransport"]
