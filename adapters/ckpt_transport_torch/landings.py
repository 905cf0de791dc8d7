"""Where the kernel reads a bucket straight to, in the tensors of a module, is found once for each bucket of a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import torch

from ckpt_transport import LoadedBucket
from ckpt_transport.spi import RunTable

FindBytes = Callable[[str], torch.Tensor]
"""Finds the bytes of a tensor by its name: uint8, one-dimensional."""


class Landings:
    """Says where buckets go, of a module whose tensors have one form, wherever they lie."""

    def __init__(self) -> None:
        self._known: dict[object, _Landing] = {}
        self._used: set[object] = set()

    def of(self, bucket: LoadedBucket, names: Sequence[str], addresses: Sequence[int], find: FindBytes) -> RunTable:
        """Where each piece of a bucket goes.

        Args:
            bucket: it.
            names, addresses: of the tensors.
            find: finds the bytes of those that are looked at.
        """
        known = self._known.get(bucket.key)
        if known is None:
            known = self._known[bucket.key] = _Landing(bucket, names)
        self._used.add(bucket.key)
        return known.at(addresses, find)

    def forget_unused(self) -> None:
        """Drop what is known of buckets that have not come since this was called before."""
        for key in self._known.keys() - self._used:
            del self._known[key]
        self._used.clear()


class _Landing:
    """Where the pieces of one bucket go: in which tensor, and how far from its first byte."""

    def __init__(self, bucket: LoadedBucket, names: Sequence[str]) -> None:
        numbers = {name: number for number, name in enumerate(names)}
        places = bucket.places()
        self._places = [(spec.name, offset, nbytes) for spec, offset, _, nbytes in places]
        self._numbers = [(numbers[spec.name], offset) for spec, offset, _, _ in places]
        self._starts = tuple([at for _, _, at, _ in places])
        self._sizes = [nbytes for _, _, _, nbytes in places]

    def at(self, addresses: Sequence[int], find: FindBytes) -> RunTable:
        lie = [addresses[number] + offset for number, offset in self._numbers]
        return RunTable(self._starts, lie, self._sizes, _Parts(self._places, find))


class _Parts(Sequence[torch.Tensor]):
    """The bytes of pieces in their tensors, made when they are looked at."""

    def __init__(self, places: Sequence[tuple[str, int, int]], find: FindBytes) -> None:
        self._places, self._find = places, find

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[torch.Tensor]: ...
    def __getitem__(self, index: int | slice) -> torch.Tensor | Sequence[torch.Tensor]:
        if isinstance(index, slice):
            return _Parts(self._places[index], self._find)
        name, offset, nbytes = self._places[index]
        raw = self._find(name)
        return raw if nbytes == raw.numel() else raw[offset : offset + nbytes]
