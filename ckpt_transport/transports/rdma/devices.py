"""RDMA devices of this host, and which are near a GPU or a NUMA node, as sysfs tells it.

Everything takes the root of sysfs, ``/sys``, so that a made-up one can be looked at. Source of the layout: Linux,
Documentation/ABI/stable/sysfs-class-infiniband and Documentation/ABI/testing/sysfs-bus-pci.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys")
NO_NODE = -1
"""What the kernel says where it knows of no NUMA node."""


@dataclass(frozen=True, slots=True)
class Locality:
    """Where something is in a host.

    Attributes:
        node: its NUMA node; NO_NODE when unknown.
        pci: the PCI bridges above it and itself, from the root complex on; empty when it is no PCI device.
    """

    node: int = NO_NODE
    pci: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RdmaDevice:
    """One RDMA device.

    Attributes:
        ports: those that are up.
        rate: bytes per second of the fastest of these; 0 when unknown.
        verbs: its file under ``/dev/infiniband``, through which a process uses it; empty when it has none.
    """

    name: str
    place: Locality
    ports: tuple[int, ...]
    rate: float = 0.0
    verbs: str = ""


def rdma_devices(sys: Path = SYS) -> tuple[RdmaDevice, ...]:
    """The RDMA devices with a port that is up, by name."""
    folder = sys / "class" / "infiniband"
    if not folder.is_dir():
        return ()
    verbs = {_read(path / "ibdev"): path.name for path in (sys / "class" / "infiniband_verbs").glob("uverbs*")}
    found = (_device(path, verbs.get(path.name, "")) for path in sorted(folder.iterdir()))
    return tuple(device for device in found if device.ports)


def locality_of_pci(address: str, sys: Path = SYS) -> Locality:
    """Where the PCI device of that address, as ``0000:81:00.0``, is."""
    return _place(sys / "bus" / "pci" / "devices" / address.lower())


def locality_of_cpus(cpus: Iterable[int], sys: Path = SYS) -> Locality:
    """The NUMA node that these CPUs are all in; an unknown place when they are in several."""
    wanted = set(cpus)
    for folder in sorted((sys / "devices" / "system" / "node").glob("node[0-9]*")):
        if wanted <= _numbers(_read(folder / "cpulist")):
            return Locality(int(folder.name.removeprefix("node")))
    return Locality()


def nearest(devices: Sequence[RdmaDevice], place: Locality) -> tuple[RdmaDevice, ...]:
    """Those of ``devices`` that are as near to ``place`` as any. All of them when nothing is known."""
    if not devices:
        return ()
    distances = [distance(device.place, place) for device in devices]
    return tuple(device for device, far in zip(devices, distances, strict=True) if far == min(distances))


def distance(one: Locality, other: Locality) -> tuple[int, int]:
    """How far apart two places are, in an order that can be compared.

    First come those below one PCI bridge, whose bytes do not pass the root complex, then those at one root complex; of
    each the ones with the fewest bridges between them. Those in one NUMA node follow, and last all others.
    """
    pairs = zip(one.pci, other.pci, strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    if shared:
        return 0 if shared > 1 else 1, len(one.pci) + len(other.pci) - 2 * shared
    return 2 if one.node == other.node != NO_NODE else 3, 0


def _device(path: Path, verbs: str) -> RdmaDevice:
    ports = _ports_up(path)
    rate = max((_rate(path / "ports" / str(port) / "rate") for port in ports), default=0.0)
    return RdmaDevice(path.name, _place(path / "device"), ports, rate, verbs)


def _rate(file: Path) -> float:
    """Of a port: the kernel writes ``100 Gb/sec (4X EDR)``."""
    number, _, unit = _read(file).partition(" ")
    return float(number) * 1e9 / 8 if unit.startswith("Gb/sec") else 0.0


def _place(device: Path) -> Locality:
    if not device.exists():
        return Locality()
    parts = device.resolve().parts
    root = next((index for index, part in enumerate(parts) if part.startswith("pci")), len(parts))
    node = _read(device / "numa_node")
    return Locality(int(node) if node else NO_NODE, parts[root:])


def _ports_up(device: Path) -> tuple[int, ...]:
    ports = sorted((device / "ports").glob("[0-9]*"), key=lambda path: int(path.name))
    return tuple(int(port.name) for port in ports if _read(port / "state").endswith("ACTIVE"))


def _numbers(ranges: str) -> set[int]:
    """What a list of the kernel's, as ``0-3,8``, holds."""
    found: set[int] = set()
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
