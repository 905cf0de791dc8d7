"""Makes hosts with links of known speed on one machine: network namespaces around a bridge, shaped in both directions.

Needs root and iproute2 (``ip`` and ``tc``).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

BRIDGE = "cktbr"
BURST = "256kb"
QUEUE_MS = 100


class NoLinksError(RuntimeError):
    """This machine does not let us make them; the message is what it said."""


@dataclass(frozen=True)
class Host:
    """One namespace, its address, and the command that runs something in it."""

    name: str
    address: str

    def command(self, arguments: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *arguments]


@contextmanager
def hosts(count: int, bits_per_second: int) -> Iterator[list[Host]]:
    """That many hosts, each with a link of its own to a switch.

    Raises:
        NoLinksError: network namespaces or traffic shaping are not allowed here.
    """
    made = [Host(f"ckt{number}", f"10.77.0.{number + 1}") for number in range(count)]
    try:
        _run(f"ip link add {BRIDGE} type bridge")
        _run(f"ip link set {BRIDGE} up")
        for host in made:
            _run(f"ip netns add {host.name}")
            _run(f"ip link add {host.name}v type veth peer name eth0 netns {host.name}")
            _run(f"ip link set {host.name}v master {BRIDGE} up")
            _run(f"ip -n {host.name} addr add {host.address}/24 dev eth0")
            _run(f"ip -n {host.name} link set eth0 up")
            _run(f"ip -n {host.name} link set lo up")
            shape = f"root tbf rate {bits_per_second} burst {BURST} latency {QUEUE_MS}ms"
            _run(f"tc qdisc add dev {host.name}v {shape}")
            _run(f"tc -n {host.name} qdisc add dev eth0 {shape}")
        yield made
    finally:
        for host in made:
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)


def _run(command: str) -> None:
    try:
        done = subprocess.run(command.split(), capture_output=True, text=True, timeout=30)
    except OSError as error:
        raise NoLinksError(f"{command}: {error}; install iproute2") from error
    if done.returncode:
        raise NoLinksError(f"{command}: {done.stderr.strip()}; are you root, in a container that may do this?")
