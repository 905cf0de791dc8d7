"""The extent of a version that is quantized on its way: its bytes are computed when a bucket is filled."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from ckpt_transport.spi import MemoryKind, ScatteredTensors, copy_each
from ckpt_transport_fp8.backend import Computation
from ckpt_transport_fp8.scales import VersionScales


class QuantizedExtent:
    """An extent that is laid out as a pool of the quantized tensors would be; a
    :class:`~ckpt_transport.memory.Backing`.

    Args:
        device: where bytes are computed.
        kept: the tensors that are sent as they are; it watches the sources of the computed tensors as well.
        scales: the scales, and the factors that go with them.
        computations: the other tensors.
    """

    kind = MemoryKind.SCATTERED

    def __init__(
        self, device: torch.device, kept: ScatteredTensors, scales: VersionScales, computations: Sequence[Computation]
    ) -> None:
        self._device, self._kept, self._scales, self._computations = device, kept, scales, computations
        self.nbytes = kept.nbytes

    def only_enqueues(self, device: torch.device) -> bool:
        return False

    def fill(self, slot: torch.Tensor, offset: int) -> None:
        with _staged(slot, self._device) as bucket:
            self._kept.fill(bucket, offset)
            self._scales.fill(bucket, offset)
            for computation in self._computations:
                computation.fill(bucket, offset, self._scales.factors)

    def check(self) -> None:
        self._kept.check()


@contextmanager
def _staged(slot: torch.Tensor, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield memory on ``device`` for the bytes of ``slot``; they are in ``slot`` when the context ends.

    That is ``slot`` itself where it lies there, in the order of the current stream. Else a GPU computes on a stream of
    this thread's own.
    """
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        if slot.device == device:
            yield slot
            return
        if device.type == "cuda":
            stack.enter_context(torch.cuda.stream(_own_stream(device)))
        staging = torch.empty_like(slot, device=device)
        yield staging
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        copy_each([slot], [staging])


_own = threading.local()


def _own_stream(device: torch.device) -> torch.cuda.Stream:
    """Return this thread's stream, so that one bucket does not wait for another thread's."""
    streams: dict[torch.device, torch.cuda.Stream] = _own.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[device]
