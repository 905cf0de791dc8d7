"""Holds two versions of a model on one device, which lie alike and differ in few elements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from ckpt_transport import LoadedBucket
from ckpt_transport.checkpoint.pool import lay_out
from ckpt_transport.memory import Buffer, MemoryKind
from ckpt_transport.planning import Extent, Manifest, PlacedBytes, PlacedTensor, TensorSpec

NEW = "new"
BUCKET_BYTES = 64 << 20
DRAWN = 1 << 27
"""So many elements are drawn at a time."""
SEED = 7


class Versions:
    """Two versions, of which nothing is known yet.

    Args:
        placed: their tensors, and where each is in either.
        nbytes: of a version.
        device: where they are.

    Attributes:
        base, new: all bytes of each.
        specs, nbytes: of their tensors.
        wanted: whether steps with them have a target; else they are only reported.
        conversion: what making the last new one of a trainer's weights has taken, in seconds; 0 where it is not made.
    """

    wanted = True

    def __init__(self, placed: Sequence[PlacedTensor], nbytes: int, device: torch.device) -> None:
        self.placed = tuple(sorted(placed, key=lambda each: each.offset))
        self.specs = [each.spec for each in self.placed]
        self.nbytes = sum(spec.nbytes for spec in self.specs)
        self.extent = Extent(0, nbytes, MemoryKind.PRIVATE)
        self.base, self.new = (Buffer(torch.zeros(nbytes, dtype=torch.uint8, device=device)) for _ in range(2))
        self.conversion = 0.0

    def change(self, share: float) -> None:
        """Have the new one differ from the base, as after a step in which this share of BF16 elements has changed."""
        raise NotImplementedError

    def manifest(self) -> Manifest:
        return Manifest(NEW, (self.extent,), self.placed)

    def buckets(self, of: Buffer) -> Iterator[LoadedBucket]:
        """All of a version, as a transport would bring it."""
        for number, places in enumerate(self._cut()):
            start, end = places[0].offset, places[-1].offset + places[-1].nbytes
            pieces = [PlacedBytes(each.spec, 0, each.offset - start, each.nbytes) for each in places]
            yield LoadedBucket(number, of.tensor[start:end], partial(list, pieces))

    def _cut(self) -> Iterator[list[PlacedTensor]]:
        bucket: list[PlacedTensor] = []
        for each in self.placed:
            if bucket and each.offset + each.nbytes - bucket[0].offset > BUCKET_BYTES:
                yield bucket
                bucket = []
            bucket.append(each)
        yield bucket


class Bf16Versions(Versions):
    """Two versions of BF16.

    Args:
        specs: their tensors.
        device: where they are.
    """

    def __init__(self, specs: Sequence[TensorSpec], device: torch.device) -> None:
        super().__init__(*placed(specs), device)
        draw(self.base.tensor)

    def change(self, share: float) -> None:
        self.new.tensor.copy_(self.base.tensor)
        flip(self.new.tensor, share)


def placed(specs: Sequence[TensorSpec]) -> tuple[list[PlacedTensor], int]:
    """These tensors one after the other, and bytes of all."""
    offsets, nbytes = lay_out(spec.nbytes for spec in specs)
    return [PlacedTensor(spec, 0, at, spec.nbytes) for spec, at in zip(specs, offsets, strict=True)], nbytes


def draw(raw: torch.Tensor) -> None:
    """Fill these bytes with BF16 weights."""
    for part in torch.split(raw.view(torch.bfloat16), DRAWN):
        part.normal_(0, 0.02)


def flip(raw: torch.Tensor, share: float) -> None:
    """Change the lowest bit of this share of BF16 elements, at places that are the same each time."""
    generator = torch.Generator(raw.device).manual_seed(SEED)
    for part in torch.split(raw.view(torch.int16), DRAWN):
        hit = torch.rand(len(part), device=raw.device, generator=generator) < share
        part ^= hit.to(torch.int16)
