"""Which transports there are to try on this machine."""

from __future__ import annotations

from ckpt_transport.transports import registry
from ckpt_transport.transports.interface import FanOut, Reach


def over_the_network() -> tuple[str, ...]:
    """Transports that are available here and reach other hosts: those from one to one, else those for many."""
    found = {name: registry.load(name).traits for name in registry.names() if registry.available(name).ok}
    far = [name for name, traits in found.items() if traits.reach is Reach.NETWORK and not traits.on_device]
    return tuple(name for name in far if found[name].fan_out is FanOut.LINEAR) or tuple(far)
