"""Distributions with transports, as pip leaves them on disk."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ckpt_transport.transports.registry import GROUP

PLUGIN = """
from ckpt_transport.transports.interface import Availability, Transport
from ckpt_transport.transports.traits import FanOut, Reach, Traits

class Plugin(Transport):
    name = "{name}"
    traits = Traits(
        reach=Reach.HOST, sends_from=frozenset(), maps_memory=True, fan_out=FanOut.LINEAR, bandwidth=1, latency=1
    )

    @classmethod
    def probe(cls):
        return Availability(True, "made for a test")

    def open(self, group, control, timeout):
        raise NotImplementedError
"""

Install = Callable[..., None]


def plugin(name: str) -> str:
    """The source of a module with a transport ``Plugin`` that calls itself ``name``."""
    return PLUGIN.format(name=name)


def write_distribution(
    site: Path,
    name: str,
    transports: Sequence[tuple[str, str]],
    modules: Mapping[str, str] | None = None,
    extras: Sequence[str] = (),
) -> None:
    """A distribution as pip leaves it: its metadata, its entry points and its modules."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    provided = "".join(f"Provides-Extra: {extra}\n" for extra in extras)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{provided}")
    lines = "".join(f"{transport} = {target}\n" for transport, target in transports)
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")
    for module, source in (modules or {}).items():
        (site / f"{module}.py").write_text(textwrap.dedent(source))
