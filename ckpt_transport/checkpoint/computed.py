"""An extent may be computed: its bytes come into being when a bucket is filled from the tensors of their owner."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

import torch

from ckpt_transport.checkpoint.scattered import ScatteredTensors
from ckpt_transport.memory import MemoryKind, copy_each


class Computing(Protocol):
    """Computes some tensors of an extent."""

    @property
    def repeatable(self) -> bool:
        """Whether each element has the same bytes however many are computed at once."""

    def fill(self, bucket: torch.Tensor, offset: int) -> None:
        """Put those bytes into ``bucket`` (uint8) that the extent has from ``offset`` on, and that are computed here.

        On a GPU it enqueues that on the current stream. Both ends of the bucket are where an element begins or ends.
        """


class ComputedExtent:
    """An extent that is laid out as a pool of its tensors would be; a :class:`~ckpt_transport.memory.Backing`.

    Args:
        device: where bytes are computed.
        kept: the tensors that are sent as they are; it watches the sources of the computed tensors as well.
        computed: the other tensors.
    """

    kind = MemoryKind.SCATTERED

    def __init__(self, device: torch.device, kept: ScatteredTensors, computed: Sequence[Computing]) -> None:
        self._device, self._kept, self._computed = device, kept, computed
        self.nbytes = kept.nbytes

    @property
    def made_on(self) -> torch.device | None:
        """Where its bytes are made, if they are the same however many are made at once; else None."""
        return self._device if all(each.repeatable for each in self._computed) else None

    def only_enqueues(self, device: torch.device) -> bool:
        return False

    def fill(self, slot: torch.Tensor, offset: int) -> None:
        with _staged(slot, self._device) as bucket:
            self._kept.fill(bucket, offset)
            for computing in self._computed:
                computing.fill(bucket, offset)

    def check(self) -> None:
        self._kept.check()


class CastTensors:
    """Casts tensors: a :class:`Computing` that only changes the dtype of their elements.

    Args:
        tensors: contiguous, on any devices.
        dtypes: what each becomes.
        offsets: where each starts in the extent, ascending, in bytes.
    """

    repeatable = True

    def __init__(self, tensors: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype], offsets: Sequence[int]) -> None:
        self._tensors = [tensor.detach().reshape(-1) for tensor in tensors]
        self._dtypes, self._offsets = dtypes, offsets

    def fill(self, bucket: torch.Tensor, offset: int) -> None:
        end = offset + bucket.numel()
        for number in range(max(bisect_right(self._offsets, offset) - 1, 0), len(self._tensors)):
            source, dtype, start = self._tensors[number], self._dtypes[number], self._offsets[number]
            if start >= end:
                return
            size = dtype.itemsize
            first, last = max(offset - start, 0) // size, min((end - start) // size, source.numel())
            if first < last:
                low = start + first * size - offset
                target = bucket[low : low + (last - first) * size].view(dtype)
                target.copy_(source[first:last], non_blocking=target.is_cuda)


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
