"""Invents tensors of a checkpoint: random bits that are finite numbers in their type, the same ones each time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from ckpt_transport import dtypes
from ckpt_transport.engine import LoadedBucket
from ckpt_transport.planning import PlacedBytes, TensorSpec
from ckpt_transport.planning.values.alignment import align_up

SEED = 3
WORD = torch.int64


class InventedTensors:
    """Tensors in buckets, each in memory of its own, as a loader may keep some of them until it has others.

    Args:
        specs: the tensors.
        bucket_bytes: of a bucket, unless one tensor has more.
        device: where buckets lie.

    Attributes:
        nbytes: of the largest bucket.
    """

    def __init__(self, specs: Sequence[TensorSpec], bucket_bytes: int, device: torch.device) -> None:
        self._device = device
        self._buckets = _cut(specs, bucket_bytes)
        self.nbytes = max(map(_end_of, self._buckets), default=0)

    def __iter__(self) -> Iterator[LoadedBucket]:
        """Each bucket. It is not kept here."""
        generator = torch.Generator(self._device).manual_seed(SEED)
        for number, places in enumerate(self._buckets):
            yield LoadedBucket(number, self._invented(places, generator), partial(list, places))

    def _invented(self, places: Sequence[PlacedBytes], generator: torch.Generator) -> torch.Tensor:
        words = torch.empty(_end_of(places) // WORD.itemsize, dtype=WORD, device=self._device)
        raw = words.random_(torch.iinfo(WORD).min, None, generator=generator).view(torch.uint8)
        for spec, _, at, nbytes, *_ in places:
            _make_finite(raw[at : at + nbytes], spec.dtype)
        return raw


def _cut(specs: Sequence[TensorSpec], bucket_bytes: int) -> list[list[PlacedBytes]]:
    buckets: list[list[PlacedBytes]] = []
    for spec in specs:
        at = _end_of(buckets[-1]) if buckets else 0
        if not buckets or at + spec.nbytes > bucket_bytes:
            buckets.append([])
            at = 0
        buckets[-1].append(PlacedBytes(spec, 0, at, spec.nbytes))
    return buckets


def _end_of(places: Sequence[PlacedBytes]) -> int:
    return align_up(places[-1].at + places[-1].nbytes) if places else 0


def _make_finite(raw: torch.Tensor, dtype: str) -> None:
    """The exponent of a number begins with the bits 0 and 1: it is below 2, and no smaller than normal numbers are.

    What is not a number, or smaller, might come out in one way of the loader and in another of the replay.
    """
    of = dtypes.TORCH.get(dtype)
    if of is torch.bool:
        raw.bitwise_and_(1)
    elif of is not None and dtypes.BITS[dtype] >= 8 and (of.is_floating_point or of.is_complex):
        size = of.itemsize // 2 if of.is_complex else of.itemsize
        raw.view(-1, size)[:, -1].bitwise_and_(0xBF).bitwise_or_(0x20)
