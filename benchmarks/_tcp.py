"""Moves messages over plain TCP sockets, as the tests' message transport does, so that only a link's speed matters."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import ClassVar

from ckpt_transport.errors import TransferTimeout
from ckpt_transport.transports.interface import Availability, FanOut, Reach, Traits
from ckpt_transport.transports.registry import GROUP
from tests.conformance.transports.message import SocketEndpoint, SocketTransport

ADDRESS = "BENCHMARK_ADDRESS"
"""The environment variable with the address of this host's link."""


class TcpEndpoint(SocketEndpoint):
    """Connects as the UNIX sockets do: the higher rank of each pair connects, and says who it is."""

    def _meet(self, end: float, timeout: float) -> None:
        own = os.environ[ADDRESS]
        with socket.create_server((own, 0), backlog=self.group.size) as listener:
            here = f"{own}:{listener.getsockname()[1]}"
            there = self.control.exchange(here.encode(), timeout)
            for peer in self.group.ranks[: self.group.index]:
                host, port = there[peer].decode().split(":")
                connection = socket.create_connection((host, int(port)), timeout)
                connection.sendall(self.group.rank.to_bytes(8, "big"))
                self._wires[peer] = self.wire_type(peer, connection)
            while len(self._wires) < self.group.size - 1:
                listener.settimeout(max(end - time.monotonic(), 0.001))
                try:
                    connection, _ = listener.accept()
                except TimeoutError as error:
                    raise TransferTimeout(f"route {self.group.route}: not everybody connected in time") from error
                peer = int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "big")
                self._wires[peer] = self.wire_type(peer, connection)
            self.control.exchange(b"", timeout)


class TcpTransport(SocketTransport):
    """Messages over TCP, to one receiver after the other."""

    name = "plain-tcp"
    traits = Traits(
        reach=Reach.NETWORK,
        sends_from=SocketTransport.traits.sends_from,
        maps_memory=False,
        fan_out=FanOut.LINEAR,
        bandwidth=1e8,
        latency=200e-6,
    )
    endpoint_type: ClassVar[type[SocketEndpoint]] = TcpEndpoint

    @classmethod
    def probe(cls) -> Availability:
        return Availability(ADDRESS in os.environ, f"{ADDRESS} is not set")


def install(folder: Path) -> None:
    """Make the transport known to every process that has ``folder`` on its path."""
    info = folder / "benchmarks_of_ckpt_transport-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: benchmarks-of-ckpt-transport\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{TcpTransport.name} = benchmarks._tcp:TcpTransport\n")
