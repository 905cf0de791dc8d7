"""Two small transports of families that no built-in CPU transport has, complete enough to be checked like any other."""

from tests.conformance.transports.message import SocketTransport
from tests.conformance.transports.one_sided import ReadTransport

__all__ = ["ReadTransport", "SocketTransport"]
