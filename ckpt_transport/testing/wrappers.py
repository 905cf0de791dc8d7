"""These transports wrap others: they make them slower, or let something go wrong on purpose.

Both work on the public interface alone, so they go around any transport, and around each other::

    LatencyTransport(ShmTransport(), latency_s=0.002, bandwidth=1e9)
    FaultTransport(GlooTransport(), [Fault(rank=2, seq=5, kind=FaultKind.KILL)])
"""

from __future__ import annotations

import enum
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import torch

from ckpt_transport.errors import TransferError
from ckpt_transport.memory import Buffer, Lendable
from ckpt_transport.transports.interface import (
    Availability,
    Control,
    Descriptor,
    Endpoint,
    Group,
    Traits,
    Transfer,
    Transport,
)
from ckpt_transport.transports.operations import Completion, MemoryRegion, Receipt


class ForwardingEndpoint(Endpoint):
    """Hands every call on to ``inner``. Override :meth:`_send` and :meth:`_recv` to come between."""

    def __init__(self, inner: Endpoint) -> None:
        super().__init__(inner.group, inner.control)
        self.inner = inner

    def allocate(self, nbytes: int) -> Buffer:
        return self.inner.allocate(nbytes)

    def register(self, memory: Lendable) -> MemoryRegion:
        return self.inner.register(memory)

    def _connect(self, peers: Mapping[int, Sequence[Descriptor]]) -> None:
        self.inner.connect(peers)

    def _send(self, transfer: Transfer, regions: Sequence[MemoryRegion]) -> Completion:
        return self.inner.post_send(transfer, regions)

    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        return self.inner.post_recv(transfer, region)

    def _abort(self, reason: BaseException) -> None:
        self.inner.abort(reason)

    def _close(self) -> None:
        self.inner.close()

    def _in_flight(self) -> int:
        return self.inner._in_flight()


class ForwardingReceipt(Receipt):
    """Hands every call on to ``inner``, which is a plain completion where the operation is a send."""

    def __init__(self, inner: Completion) -> None:
        self.inner = inner

    def done(self) -> bool:
        return self.inner.done()

    def views(self) -> Sequence[torch.Tensor]:
        return self.inner.views() if isinstance(self.inner, Receipt) else ()

    def release(self) -> None:
        if isinstance(self.inner, Receipt):
            self.inner.release()


class _Wrapper(Transport):
    def __init__(self, inner: Transport, label: str, traits: Traits) -> None:
        self.inner = inner
        vars(self).update(name=f"{label}({inner.name})", traits=traits)

    @classmethod
    def probe(cls) -> Availability:
        """Always fine; ask the transport inside."""
        return Availability(True)


# -- slower ---------------------------------------------------------------------------------------------------------


class LatencyTransport(_Wrapper):
    """Ends every operation no earlier than a link of this speed would let it.

    Args:
        inner: what really moves the bytes.
        latency_s: seconds from the post of an operation to its earliest end.
        bandwidth: bytes per second; operations of one rank share it, one after the other.
    """

    def __init__(self, inner: Transport, *, latency_s: float = 0.0, bandwidth: float = float("inf")) -> None:
        traits = msgspec.structs.replace(
            inner.traits,
            latency=inner.traits.latency + latency_s,
            bandwidth=min(inner.traits.bandwidth, bandwidth),
        )
        super().__init__(inner, "latency", traits)
        self.latency_s, self.bandwidth = latency_s, bandwidth

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        return _SlowEndpoint(self.inner.open(group, control, timeout), self.latency_s, self.bandwidth)


class _SlowEndpoint(ForwardingEndpoint):
    def __init__(self, inner: Endpoint, latency_s: float, bandwidth: float) -> None:
        super().__init__(inner)
        self._latency, self._bandwidth = latency_s, bandwidth
        self._free_at = 0.0

    def _due(self, transfer: Transfer) -> float:
        self._free_at = max(self._free_at, time.monotonic()) + transfer.nbytes / self._bandwidth
        return self._free_at + self._latency

    def _send(self, transfer: Transfer, regions: Sequence[MemoryRegion]) -> Completion:
        return _Late(super()._send(transfer, regions), self._due(transfer), self.inner)

    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        return _Late(super()._recv(transfer, region), self._due(transfer), self.inner)


class _Late(ForwardingReceipt):
    """Is not asked before it is due, so its regions stay in use until then. It fails at once when its endpoint does."""

    def __init__(self, inner: Completion, due: float, endpoint: Endpoint) -> None:
        super().__init__(inner)
        self._due, self._endpoint = due, endpoint

    def done(self) -> bool:
        if time.monotonic() < self._due:
            self._endpoint._check_usable()
            return False
        return self.inner.done()


# -- faulty ---------------------------------------------------------------------------------------------------------


class FaultKind(enum.StrEnum):
    """Says what goes wrong."""

    FAIL_POST = "fail_post"
    """The post raises TransferError, and the transport inside never hears of it."""
    FAIL = "fail"
    """The completion raises TransferError, and the endpoint is broken from then on."""
    NEVER = "never"
    """The completion is never done. It fails when the endpoint does, of its own or by ``abort``."""
    KILL = "kill"
    """The process is killed by SIGKILL as it posts."""
    DROP = "drop"
    """The last bytes of a receive are lost: they read as zero, although it says done."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Lets one thing go wrong when ``rank`` posts transfer ``seq``.

    Attributes:
        nbytes: how many bytes :attr:`FaultKind.DROP` loses.
    """

    rank: int
    seq: int
    kind: FaultKind
    nbytes: int = 1


class FaultTransport(_Wrapper):
    """Works like ``inner``, but for the given faults."""

    def __init__(self, inner: Transport, faults: Iterable[Fault]) -> None:
        super().__init__(inner, "fault", inner.traits)
        self.faults = tuple(faults)

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        mine = {fault.seq: fault for fault in self.faults if fault.rank == group.rank}
        return _FaultyEndpoint(self.inner.open(group, control, timeout), mine)


class _FaultyEndpoint(ForwardingEndpoint):
    def __init__(self, inner: Endpoint, faults: Mapping[int, Fault]) -> None:
        super().__init__(inner)
        self._faults = faults

    def _send(self, transfer: Transfer, regions: Sequence[MemoryRegion]) -> Completion:
        return self._spoil(transfer, lambda: self.inner.post_send(transfer, regions))

    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        return self._spoil(transfer, lambda: self.inner.post_recv(transfer, region), mapped=region is None)

    def _spoil(self, transfer: Transfer, post: Callable[[], Completion], *, mapped: bool = False) -> ForwardingReceipt:
        fault = self._faults.get(transfer.seq)
        if fault is None:
            return ForwardingReceipt(post())
        if fault.kind is FaultKind.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.kind is FaultKind.FAIL_POST:
            raise TransferError(f"injected: rank {fault.rank} cannot post transfer {fault.seq}")
        return _Faulty(post(), fault, self.inner, mapped=mapped)


class _Faulty(ForwardingReceipt):
    def __init__(self, inner: Completion, fault: Fault, endpoint: Endpoint, *, mapped: bool) -> None:
        super().__init__(inner)
        self._fault, self._endpoint, self._mapped = fault, endpoint, mapped
        self._spoiled: list[torch.Tensor] | None = None

    def done(self) -> bool:
        if self._fault.kind is FaultKind.FAIL:
            error = TransferError(f"injected: transfer {self._fault.seq} fails at rank {self._fault.rank}")
            self._endpoint.abort(error)
            raise error
        if self._fault.kind is FaultKind.NEVER:
            self.inner.done()
            self._endpoint._check_usable()
            return False
        if not self.inner.done():
            return False
        if self._fault.kind is FaultKind.DROP and self._spoiled is None:
            self._spoiled = [view.clone() if self._mapped else view for view in super().views()]
            left = self._fault.nbytes
            for view in reversed(self._spoiled):
                lost = min(left, view.numel())
                view[view.numel() - lost :] = 0
                left -= lost
        return True

    def views(self) -> Sequence[torch.Tensor]:
        return super().views() if self._spoiled is None else self._spoiled
