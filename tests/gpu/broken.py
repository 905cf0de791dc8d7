"""The transports of GPUs, each with one defect."""

from __future__ import annotations

import torch

from ckpt_transport.errors import TransportError
from ckpt_transport.memory import Fence, MemoryRun, Runs, fence
from ckpt_transport.transports import Poll
from ckpt_transport.transports.interface import Control, Descriptor, Endpoint, Group, Transfer
from ckpt_transport.transports.operations import MemoryRegion, Receipt
from ckpt_transport_cuda_ipc import CudaIpcTransport
from ckpt_transport_cuda_ipc.plugin import CudaIpcEndpoint
from ckpt_transport_nccl import NcclTransport
from ckpt_transport_nccl.plugin import NcclEndpoint
from tests.conformance.broken.others import given_back_early

DELAY_CYCLES = 400_000_000
"""Clock cycles of a GPU, some tenths of a second."""


class _ReusesSlotEarly(CudaIpcEndpoint):
    def _recv(self, transfer: Transfer, region: MemoryRegion | None) -> Receipt:
        return given_back_early(super()._recv(transfer, region))


class ReusesSlotEarly(CudaIpcTransport):
    """The sender gets its slot back when the receive is done, while the receiver still reads it."""

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        control.exchange(b"", timeout)
        return _ReusesSlotEarly(group, control)


class _ShowsAnOldCopy(CudaIpcEndpoint):
    def _map(self, sender: int, descriptor: Descriptor) -> Runs:
        return [MemoryRun(at, raw.clone()) for at, raw in super()._map(sender, descriptor)]


class ShowsAnOldCopy(CudaIpcTransport):
    """A receiver sees what was in the sender's memory when it connected."""

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        control.exchange(b"", timeout)
        return _ShowsAnOldCopy(group, control)


class _DoneWhenEnqueued(NcclEndpoint):
    def _broadcast(self, tensor: torch.Tensor, root: int) -> Poll:
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(DELAY_CYCLES)  # type: ignore[no-untyped-call]
        super()._broadcast(tensor, root)
        return lambda: True


class DoneWhenEnqueued(NcclTransport):
    """An operation is done when the broadcast is in the GPU's queue."""

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        return _DoneWhenEnqueued(group, control, timeout)


class _MarksTooEarly(NcclEndpoint):
    def _enqueued(self) -> Fence:
        with torch.cuda.stream(torch.cuda.Stream(self.device)):  # type: ignore[no-untyped-call]
            end = fence(self.device)
        assert end is not None
        return end


class MarksTooEarly(NcclTransport):
    """A fence is the end of nothing."""

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        return _MarksTooEarly(group, control, timeout)


class _LosesTheLastByte(NcclEndpoint):
    def _broadcast(self, tensor: torch.Tensor, root: int) -> Poll:
        return super()._broadcast(tensor[:-1] if tensor.numel() > 1 else tensor, root)


class LosesTheLastByte(NcclTransport):
    """A broadcast is a byte too short."""

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        return _LosesTheLastByte(group, control, timeout)


class _KeepsReason(NcclEndpoint):
    def _abort(self, reason: BaseException) -> None:
        super()._abort(TransportError("something went wrong"))


class KeepsReason(NcclTransport):
    """Peers hear of an abort, and not why."""

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        return _KeepsReason(group, control, timeout)
