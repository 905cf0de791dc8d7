"""Small transports, of families or with limits that no built-in CPU transport has, which are checked like any other."""

from tests.conformance.transports.collective import NarrowTransport
from tests.conformance.transports.mapped import ApartTransport, KeepsTheFirstRun
from tests.conformance.transports.message import SocketTransport
from tests.conformance.transports.one_sided import ReadTransport

__all__ = ["ApartTransport", "KeepsTheFirstRun", "NarrowTransport", "ReadTransport", "SocketTransport"]
