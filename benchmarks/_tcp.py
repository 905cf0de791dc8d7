"""Moves messages over plain TCP sockets, as the tests' message transport does, so that only a link's speed matters."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import ClassVar

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
            self._wire_up(listener, here, _connected, end, timeout)


def _connected(address: str, timeout: float) -> socket.socket:
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout)


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
