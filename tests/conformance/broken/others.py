"""Broken subclasses of the mapped and of the message transport."""

from __future__ import annotations

import torch

from ckpt_transport.memory import Segment
from ckpt_transport.transports import Poll
from ckpt_transport.transports.interface import Control, Endpoint, Group, Transfer
from ckpt_transport.transports.operations import MemoryRegion, Receipt
from ckpt_transport.transports.polled import PolledOperation
from ckpt_transport_shm import ShmTransport
from ckpt_transport_shm.plugin import ShmEndpoint
from tests.conformance.transports.message import Message, SocketEndpoint, SocketTransport, Tag, Wire


def given_back_early(receive: Receipt) -> Receipt:
    """A receive that gives the sender's slot back when it is done, while the receiver still reads it."""
    assert isinstance(receive, PolledOperation)

    def give_back() -> bool:
        receive.release()
        return True

    receive._polls.append(give_back)
    return receive


class _ReusesSlotEarly(ShmEndpoint):
    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        return given_back_early(super()._recv(transfer, region))


class ReusesSlotEarly(ShmTransport):
    """The sender gets its slot back when the receive is done, while the receiver still reads it."""

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        control.exchange(b"", timeout)
        return _ReusesSlotEarly(group, control)


class _GivesBackTooMany(ShmEndpoint):
    def _on_ack(self, receiver: int, seq: int, *, and_before: bool) -> None:
        super()._on_ack(receiver, seq + 30 if and_before else seq, and_before=and_before)


class GivesBackTooMany(ShmTransport):
    """When many transfers are given back together, the sender takes back some that come after them, too."""

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        control.exchange(b"", timeout)
        return _GivesBackTooMany(group, control)


class _LeaksOnClose(ShmEndpoint):
    leaked: list[Segment] = []  # noqa: RUF012

    def _shut(self) -> None:
        self.leaked.extend(self._own)


class LeaksOnClose(ShmTransport):
    """Shared memory stays when an endpoint is closed."""

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        control.exchange(b"", timeout)
        return _LeaksOnClose(group, control)


class _LastComesFirst(Wire):
    def _match(self, tag: Tag) -> Message | None:
        return next(reversed(self.receives.values())) if self.receives else None


class _Reorders(SocketEndpoint):
    wire_type = _LastComesFirst


class Reorders(SocketTransport):
    """A message goes to the newest receive, whatever its tag."""

    endpoint_type = _Reorders


class _DoneWhenEnqueued(SocketEndpoint):
    def _agreed(self, transfer: Transfer) -> Poll:
        super()._agreed(transfer)
        return lambda: True

    def _receive_from(self, sender: int, tag: Tag, tensor: torch.Tensor) -> Poll:
        super()._receive_from(sender, tag, tensor)
        return lambda: True


class DoneWhenEnqueued(SocketTransport):
    """A receive is done when it has been handed to the library."""

    endpoint_type = _DoneWhenEnqueued


class _Passed:
    """A fence that nothing stands behind."""

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def wait(self, stream: torch.cuda.Stream) -> None: ...


class _MarksWithoutOrder(SocketEndpoint):
    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        operation = super()._recv(transfer, region)
        assert isinstance(operation, PolledOperation)
        operation._fence = _Passed
        return operation


class MarksWithoutOrder(SocketTransport):
    """Receives have a fence, and there is no stream that would keep their order."""

    endpoint_type = _MarksWithoutOrder


class NeverOpens(SocketTransport):
    """Its library refuses every route."""

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        raise OSError("no such device")
