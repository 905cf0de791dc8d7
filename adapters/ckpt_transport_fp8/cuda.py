"""Maxima and casts on a GPU: by Triton kernels for weights that lie there, else by torch's own operations."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from ckpt_transport_fp8 import cpu
from ckpt_transport_fp8.bands import stretches
from ckpt_transport_fp8.computed import Compute, Computed
from ckpt_transport_fp8.cpu import MAGNITUDE
from ckpt_transport_fp8.part import Part, Parts, Run
from ckpt_transport_fp8.rows import Places

if TYPE_CHECKING:
    from ckpt_transport_fp8.tiles import Tiles

ELEMENTS = 4 << 20
"""As many are worked on at a time by torch's operations; each takes up to 14 bytes meanwhile."""
FIRST_CAPABILITY = (8, 9)
"""Of devices that round to e4m3 themselves."""


def has_kernels(device: torch.device) -> bool:
    """Whether the Triton kernels run there."""
    return importlib.util.find_spec("triton") is not None and (
        torch.cuda.get_device_capability(device) >= FIRST_CAPABILITY
    )


def computed_on_gpu(device: torch.device, parts: Sequence[Part]) -> Compute:
    """As :func:`ckpt_transport_fp8.devices.computed_on`."""
    if not has_kernels(device):
        return partial(OnCuda, Parts(parts), device)
    from ckpt_transport_fp8.tiles import Tiles

    tiles = Tiles([part for part in parts if part.source_device == device], device)
    tabled = {part.number for part in tiles.parts}
    return partial(Tiled, tiles, Parts([part for part in parts if part.number not in tabled]), device)


def places_on_gpu(device: torch.device, offsets: Sequence[int]) -> Places:
    """As :func:`ckpt_transport_fp8.devices.places_on`."""
    if not has_kernels(device):
        return Places(offsets, device)
    from ckpt_transport_fp8.placing import PlacesOnGpu

    return PlacesOnGpu(offsets, device)


class OnCuda(Computed):
    """Computed on one GPU: on the current stream where slots are there too, else on a stream of the thread's own."""

    def largest(self, groups: int) -> torch.Tensor:
        found = torch.zeros(groups, device=self.device)
        if on_host := [part for part in self._parts.scaled if part.source_device.type == "cpu"]:
            maxima = torch.zeros(groups)
            cpu.largest(on_host, self._tensors, maxima)
            found.copy_(maxima)
        for part in self._parts.scaled:
            if part.source_device.type != "cpu":
                part.of_groups(found).copy_(_largest(part.source(self._tensors), part.group))
        return found

    @contextmanager
    def room_for(self, slot: torch.Tensor) -> Iterator[torch.Tensor]:
        with torch.cuda.device(self.device):
            if slot.device == self.device:
                yield slot
                return
            with torch.cuda.stream(_stream(self.device)), super().room_for(slot) as room:
                yield room
                torch.cuda.current_stream(self.device).synchronize()

    def fill(self, room: torch.Tensor, offset: int, factors: torch.Tensor) -> None:
        end = offset + room.numel()
        for part in self._parts.within(offset, end):
            for run in part.runs(offset, end):
                self._cast(part, run, room, factors)

    def _cast(self, part: Part, run: Run, room: torch.Tensor, factors: torch.Tensor) -> None:
        width, size, high = run.columns.stop - run.columns.start, part.dtype.itemsize, part.group[0]
        source = part.source(self._tensors)
        for first, last in stretches(run.rows.start, run.rows.stop, high, ELEMENTS // width):
            elements = source[first:last, run.columns].to(self.device, non_blocking=True).to(torch.float32)
            if part.first_group is not None:
                own = part.of_groups(factors)[first // high : -(-last // high)]
                if own.shape[1] > 1:
                    own = own.repeat_interleave(part.group[1], dim=1)[:, run.columns]
                elements = (elements.view(len(own), -1, width) * own.unsqueeze(1)).view(-1, width)
            start = run.start + (first - run.rows.start) * width * size
            target = room[start : start + (last - first) * width * size]
            target.view(part.dtype).view(elements.shape).copy_(elements)


class Tiled(OnCuda):
    """Where there are kernels: what is in tables by few launches, the rest by torch's operations.

    Args:
        tiles: of the matrices in tables.
        rest, device, tensors: as :class:`OnCuda`.
    """

    def __init__(self, tiles: Tiles, rest: Parts, device: torch.device, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__(rest, device, tensors)
        self._tiles, self._addresses = tiles, tiles.addresses(tensors)

    def largest(self, groups: int) -> torch.Tensor:
        found = super().largest(groups)
        self._tiles.search(found, self._addresses)
        return found

    def fill(self, room: torch.Tensor, offset: int, factors: torch.Tensor) -> None:
        self._tiles.cast(room, offset, self._addresses, factors)
        super().fill(room, offset, factors)


def _largest(matrix: torch.Tensor, group: tuple[int, int]) -> torch.Tensor:
    """As :func:`ckpt_transport_fp8.cpu.largest`, of one matrix on a GPU."""
    bits = MAGNITUDE[matrix.dtype]
    (rows, columns), (high, wide) = matrix.shape, group
    magnitudes = matrix.view(bits) & torch.iinfo(bits).max
    padded = torch.nn.functional.pad(magnitudes, (0, -columns % wide, 0, -rows % high))
    most = padded.view(-1, high, padded.shape[1] // wide, wide).amax(dim=(1, 3))
    return most.view(matrix.dtype).to(torch.float32)


_own = threading.local()


def _stream(device: torch.device) -> torch.cuda.Stream:
    """This thread's, so that one bucket does not wait for another's."""
    streams: dict[torch.device, torch.cuda.Stream] = _own.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[device]
