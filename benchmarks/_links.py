"""Makes hosts with links of known speed on one machine: network namespaces around a bridge, shaped in both directions.

Needs root and iproute2 (``ip`` and ``tc``); and nftables (``nft``) for links that lose packets.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

BRIDGE = "cktbr"
BURST = "256kb"
QUEUE_MS = 100
NAMES = Path("/etc/netns")
"""Where iproute2 looks for files of a namespace."""


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
def hosts(rates: Sequence[int], lost: int = 0) -> Iterator[list[Host]]:
    """A host for each rate, with a link of its own to a switch. Its name is resolved to the address of that link.

    Args:
        rates: bits per second in each direction; 0 for a link that is not shaped.
        lost: of each 10,000 packets that come to a host, chosen at random.

    Raises:
        NoLinksError: network namespaces or traffic shaping are not allowed here, or another run has some; what is there
            is left alone.
    """
    made = [Host(f"ckt{number}", f"10.77.0.{number + 1}") for number in range(len(rates))]
    with ExitStack() as stack:
        _run(f"ip link add {BRIDGE} type bridge")
        stack.callback(_remove, f"ip link del {BRIDGE}")
        _run(f"ip link set {BRIDGE} up")
        for host, rate in zip(made, rates, strict=True):
            _run(f"ip netns add {host.name}")
            stack.callback(_remove, f"ip netns del {host.name}")
            stack.callback(shutil.rmtree, NAMES / host.name, ignore_errors=True)
            _resolve(host)
            _run(f"ip link add {host.name}v type veth peer name eth0 netns {host.name}")
            # With its namespace it would be removed some time later, and the next run would find it.
            stack.callback(_remove, f"ip link del {host.name}v")
            _run(f"ip link set {host.name}v master {BRIDGE} up")
            _run(f"ip -n {host.name} addr add {host.address}/24 dev eth0")
            _run(f"ip -n {host.name} link set eth0 up")
            _run(f"ip -n {host.name} link set lo up")
            if lost:
                _lose(host, lost)
            if not rate:
                continue
            shape = f"root tbf rate {rate} burst {BURST} latency {QUEUE_MS}ms"
            _run(f"tc qdisc add dev {host.name}v {shape}")
            _run(f"tc -n {host.name} qdisc add dev eth0 {shape}")
        yield made


def _lose(host: Host, lost: int) -> None:
    _run(f"ip netns exec {host.name} nft add table inet lossy")
    _run(f"ip netns exec {host.name} nft add chain inet lossy come {{ type filter hook input priority 0; }}")
    _run(f"ip netns exec {host.name} nft add rule inet lossy come numgen random mod 10000 < {lost} drop")


def _remove(command: str) -> None:
    subprocess.run(command.split(), capture_output=True)


def _resolve(host: Host) -> None:
    """What runs in the namespace finds its own name there, as on a host of a cluster."""
    folder = NAMES / host.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{host.address} {socket.gethostname()}\n", encoding="utf-8")
    except OSError as error:
        raise NoLinksError(f"{folder}: {error.strerror}; are you root?") from error


def _run(command: str) -> None:
    try:
        done = subprocess.run(command.split(), capture_output=True, text=True, timeout=30)
    except OSError as error:
        raise NoLinksError(f"{command}: {error}; install iproute2") from error
    if "File exists" in done.stderr:
        raise NoLinksError(f"{command}: it is there; does another run use it? If none does, remove it")
    if done.returncode:
        raise NoLinksError(f"{command}: {done.stderr.strip()}; are you root, in a container that may do this?")
