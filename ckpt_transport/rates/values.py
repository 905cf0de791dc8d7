"""The rates of a host are a value: bytes per second, by link."""

from __future__ import annotations

import enum
from functools import cached_property
from typing import Annotated

import msgspec


class LinkKind(enum.StrEnum):
    """What a link of a host is between."""

    MEMORY = "host memory"
    """A copy within it, by all cores that a process may use."""
    CORE = "host memory, one core"
    LOOPBACK = "TCP over loopback"
    """One connection."""
    NETWORK = "network"
    """All devices of the host together, each direction, as they say themselves: there is nobody to measure with."""
    TO_DEVICE = "host to GPU"
    """From page-locked memory."""
    FROM_DEVICE = "GPU to host"
    """Into page-locked memory."""
    DEVICE = "GPU memory"
    """A copy within it."""
    PEER = "GPU to GPU"


class HostLink(msgspec.Struct, frozen=True, array_like=True):
    """One link of a host.

    Attributes:
        kind: what it is between.
        source, target: UUIDs of the GPUs at its ends, empty for the host itself.
    """

    kind: LinkKind
    source: str = ""
    target: str = ""


class LinkRate(msgspec.Struct, frozen=True, array_like=True):
    """How fast bytes cross one link.

    Attributes:
        link: which.
        rate: bytes that arrive, per second; what a copy reads and writes counts once.
    """

    link: HostLink
    rate: Annotated[float, msgspec.Meta(gt=0)]


class HostRates(msgspec.Struct, frozen=True, dict=True):
    """How fast bytes cross the links of one host, in bytes per second.

    Attributes:
        links: every link whose rate is known.
        bucket_seconds: what the host needs for a bucket beside moving it; 0 when it is not known.
    """

    links: tuple[LinkRate, ...]
    bucket_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0

    def rate(self, kind: LinkKind, source: str = "", target: str = "") -> float:
        """Bytes per second over that link; 0 when it is not known."""
        return self._by_link.get(HostLink(kind, source, target), 0.0)

    @cached_property
    def _by_link(self) -> dict[HostLink, float]:
        return {each.link: each.rate for each in self.links}
