"""Maxima and casts on a GPU: by Triton kernels for weights that lie there, else by torch's own operations."""

from __future__ import annotations

import importlib.util
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from ckpt_transport_fp8.bands import stretches
from ckpt_transport_fp8.computed import Computed
from ckpt_transport_fp8.cpu import MAGNITUDE
from ckpt_transport_fp8.part import Part, Run

ELEMENTS = 4 << 20
"""As many are worked on at a time by torch's operations; each takes up to 14 bytes meanwhile."""
FIRST_CAPABILITY = (8, 9)
"""Of devices that round to e4m3 themselves."""


def has_kernels(device: torch.device) -> bool:
    """Whether the Triton kernels run there."""
    return importlib.util.find_spec("triton") is not None and (
        torch.cuda.get_device_capability(device) >= FIRST_CAPABILITY
    )


def largest(matrices: Sequence[torch.Tensor], groups: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """As :func:`ckpt_transport_fp8.cpu.largest`, of matrices on one GPU. Complete when it returns."""
    device = matrices[0].device
    found: dict[int, torch.Tensor] = {}
    with torch.cuda.device(device):
        if has_kernels(device):
            from ckpt_transport_fp8.tiles import Tiles, kind_of

            kinds: defaultdict[object, list[int]] = defaultdict(list)
            for number, (matrix, group) in enumerate(zip(matrices, groups, strict=True)):
                kinds[kind_of(matrix, group)].append(number)
            kinds.pop(None, None)
            for numbers in kinds.values():
                chosen, their = [matrices[number] for number in numbers], [groups[number] for number in numbers]
                kind = kind_of(chosen[0], their[0])
                assert kind is not None
                found.update(zip(numbers, Tiles(kind, chosen, their, device).largest(), strict=True))
        for number in set(range(len(matrices))) - found.keys():
            found[number] = _largest(matrices[number], groups[number])
    return [found[number] for number in range(len(matrices))]


def _largest(matrix: torch.Tensor, group: tuple[int, int]) -> torch.Tensor:
    bits = MAGNITUDE[matrix.dtype]
    (rows, columns), (high, wide) = matrix.shape, group
    magnitudes = matrix.view(bits) & torch.iinfo(bits).max
    padded = torch.nn.functional.pad(magnitudes, (0, -columns % wide, 0, -rows % high))
    most = padded.view(-1, high, padded.shape[1] // wide, wide).amax(dim=(1, 3))
    return most.cpu().view(matrix.dtype).to(torch.float32)


class OnCuda(Computed):
    """Computed on one GPU: on the current stream where slots are there too, else on a stream of the thread's own."""

    def __init__(self, parts: Sequence[Part], device: torch.device) -> None:
        self._casters = []
        if has_kernels(device):
            from ckpt_transport_fp8.tiles import Tiles, by_kind

            with torch.cuda.device(device):
                there = [part for part in parts if part.source.device == device]
                elsewhere = [part for part in parts if part.source.device != device]
                together, rest = by_kind(there)
                for kind, chosen in together.items():
                    tiles = Tiles(kind, [part.source for part in chosen], [part.group for part in chosen], device)
                    factors = [part.factors for part in chosen if part.factors is not None]
                    self._casters.append(tiles.caster([part.offset for part in chosen], factors))
                torch.cuda.current_stream(device).synchronize()
            parts = sorted(rest + elsewhere, key=lambda part: part.offset)
        super().__init__(parts, device)
        self._factors = {part.offset: part.factors.to(device) for part in parts if part.factors is not None}

    @contextmanager
    def room_for(self, slot: torch.Tensor) -> Iterator[torch.Tensor]:
        with torch.cuda.device(self.device):
            if slot.device == self.device:
                yield slot
                return
            with torch.cuda.stream(_stream(self.device)), super().room_for(slot) as room:
                yield room
                torch.cuda.current_stream(self.device).synchronize()

    def fill(self, room: torch.Tensor, offset: int) -> None:
        end = offset + room.numel()
        for cast in self._casters:
            cast(room, offset)
        for part in self.within(offset, end):
            for run in part.runs(offset, end):
                self._cast(part, run, room)

    def _cast(self, part: Part, run: Run, room: torch.Tensor) -> None:
        width, size, high = run.columns.stop - run.columns.start, part.dtype.itemsize, part.group[0]
        for first, last in stretches(run.rows.start, run.rows.stop, high, ELEMENTS // width):
            elements = part.source[first:last, run.columns].to(self.device, non_blocking=True).to(torch.float32)
            factors = self._factors.get(part.offset)
            if factors is not None:
                factors = factors[first // high : -(-last // high)]
                if factors.shape[1] > 1:
                    factors = factors.repeat_interleave(part.group[1], dim=1)[:, run.columns]
                elements = (elements.view(len(factors), -1, width) * factors.unsqueeze(1)).view(-1, width)
            start = run.start + (first - run.rows.start) * width * size
            target = room[start : start + (last - first) * width * size]
            target.view(part.dtype).view(elements.shape).copy_(elements)


_own = threading.local()


def _stream(device: torch.device) -> torch.cuda.Stream:
    """This thread's, so that one bucket does not wait for another's."""
    streams: dict[torch.device, torch.cuda.Stream] = _own.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return streams[device]
