"""Transports that give wrong bytes and say that all is well, as plugins for the processes of a fleet."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch

from ckpt_transport.testing.wrappers import ForwardingEndpoint, ForwardingReceipt
from ckpt_transport.transports.interface import Control, Endpoint, Group, Transfer, Transport
from ckpt_transport.transports.operations import MemoryRegion, Receipt
from ckpt_transport.transports.registry import GROUP
from ckpt_transport_gloo import GlooTransport
from ckpt_transport_shm import ShmTransport
from tests.conformance.transports import ReadTransport, SocketTransport

FIRST = 2
"""How many receives of a route are right before the one that is not."""


class Wrong(enum.StrEnum):
    """What is wrong with a transfer."""

    FLIP = "flip"
    """One bit."""
    SWAP = "swap"
    """Two spans of equal size have changed places."""
    STALE = "stale"
    """A part of what was in the slot before is still there."""
    SHORT = "short"
    """The last bytes have not come."""


def _spoil(kind: Wrong, view: torch.Tensor, before: torch.Tensor) -> None:
    half = view.numel() // 2
    match kind:
        case Wrong.FLIP:
            view[half] ^= 4
        case Wrong.SWAP:
            first = view[:half].clone()
            view[:half] = view[half : 2 * half]
            view[half : 2 * half] = first
        case Wrong.STALE:
            view[:64] = before[:64]
        case Wrong.SHORT:
            view[-1000:] = 0


class _Spoiled(ForwardingReceipt):
    """A receive that gives wrong bytes: in its slot, or, of what is mapped, in a copy."""

    def __init__(self, inner: Receipt, kind: Wrong, slot: torch.Tensor | None) -> None:
        super().__init__(inner)
        self._kind, self._before = kind, None if slot is None else slot.clone()
        self._views: Sequence[torch.Tensor] = ()

    def done(self) -> bool:
        if self._views:
            return True
        if not self.inner.done():
            return False
        views = list(super().views())
        if self._before is None:
            views[0] = views[0].clone()
        _spoil(self._kind, views[0], torch.zeros(64, dtype=torch.uint8) if self._before is None else self._before)
        self._views = views
        return True

    def views(self) -> Sequence[torch.Tensor]:
        return self._views


class _Spoiling(ForwardingEndpoint):
    def __init__(self, inner: Endpoint, kind: Wrong, every: int) -> None:
        super().__init__(inner)
        self._kind, self._every, self._received = kind, every, 0

    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        self._received += 1
        wrong = self._received > FIRST and (self._received - FIRST - 1) % self._every == 0
        span = transfer.spans[0]
        slot = region.slice(span.local, span.nbytes) if wrong and region is not None else None
        receipt = super()._recv(transfer, region)
        return _Spoiled(receipt, self._kind, slot) if wrong else receipt


def spoiled(inner: type[Transport], wrong: Wrong) -> type[Transport]:
    """``inner``, of which some transfers are wrong."""

    def open_spoiling(self: Transport, group: Group, control: Control, timeout: float) -> Endpoint:
        return _Spoiling(inner.open(self, group, control, timeout), wrong, every=5)

    return type(f"{wrong}{inner.__name__}", (inner,), {"name": name(wrong, inner), "open": open_spoiling})


def name(wrong: Wrong, inner: type[Transport]) -> str:
    return f"{wrong}_{inner.name}"


KINDS: Mapping[str, type[Transport]] = {
    kind.name: kind
    for wrong in Wrong
    for kind in [spoiled(inner, wrong) for inner in (ShmTransport, GlooTransport, ReadTransport, SocketTransport)]
}
"""All of them, by name."""


def __getattr__(attribute: str) -> type[Transport]:
    """So that entry points find them."""
    found = {name.replace("-", "_"): kind for name, kind in KINDS.items()}.get(attribute)
    if found is None:
        raise AttributeError(attribute)
    return found


def make_site(folder: Path, others: Mapping[str, str] = MappingProxyType({})) -> str:
    """A folder that installs them where it is on the path; see :func:`tests.site.use`.

    Args:
        others: more transports, by name: where each is, as an entry point says it.
    """
    info = folder / "wrong_transports-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong-transports\nVersion: 1.0\n")
    lines = [f"{name} = tests.corrupting:{name.replace('-', '_')}" for name in KINDS]
    lines += [f"{name} = {where}" for name, where in others.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))
    return str(folder)
