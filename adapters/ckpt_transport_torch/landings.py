"""Where a bucket goes in the tensors of a module in host memory is found once for each bucket of a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

import numpy as np
import torch

from ckpt_transport import LoadedBucket
from ckpt_transport.spi import HostCopies, Landing, MemoryRun, PlacedBytes, Scratch, copy_runs, copy_views

FindBytes = Callable[[str], torch.Tensor]
"""Finds the bytes of a tensor by its name: uint8, one-dimensional."""

SHORTEST = 512
"""Bytes of a run of columns; shorter ones are copied faster than they are read from another process one by one."""


class Landings:
    """Says where buckets go, of a module whose tensors have one form, wherever they lie."""

    def __init__(self) -> None:
        self._known: dict[object, BucketLanding] = {}
        self._used: set[object] = set()

    def of(self, bucket: LoadedBucket, names: Sequence[str]) -> BucketLanding:
        """Where a bucket goes in tensors of these names."""
        known = self._known.get(bucket.key)
        if known is None:
            known = self._known[bucket.key] = BucketLanding(bucket.places(), names)
        self._used.add(bucket.key)
        return known

    def forget_unused(self) -> None:
        """Drop what is known of buckets that have not come since this was called before."""
        for key in self._known.keys() - self._used:
            del self._known[key]
        self._used.clear()


class BucketLanding:
    """Where one bucket goes: in which tensors, and how far from their first bytes.

    Args:
        places: what lies in it.
        names: of the tensors.
    """

    def __init__(self, places: Sequence[PlacedBytes], names: Sequence[str]) -> None:
        numbers = {name: number for number, name in enumerate(names)}
        self._passing: list[MemoryRun] = []
        self._strided = [place for place in places if place.runs > 1]
        self._short = sorted((each for each in self._strided if each.nbytes < SHORTEST), key=attrgetter("at"))
        """What is read from another process sooner as a whole, and copied to its rows then."""
        self._single = _Runs([place for place in places if place.runs == 1], numbers)
        straight = [place for place in places if place.runs == 1 or place.nbytes >= SHORTEST]
        self._straight = _Runs(straight, numbers) if self._strided else self._single

    def landing(self, addresses: Sequence[int], find: FindBytes, scratch: Scratch) -> Landing:
        """Where its bytes are read to from another process. When they are there, :meth:`landed` does the rest.

        Args:
            addresses: of the tensors.
            find: keeps their memory.
            scratch: has room for what is copied to its rows then.
        """
        runs = self._straight
        landing = Landing(runs.starts, runs.at(addresses), runs.sizes, find)
        if not self._short:
            return landing
        self._passing = scratch.runs([(place.at, place.total) for place in self._short])
        return landing.beside(Landing.of(self._passing))

    def landed(self, find: FindBytes) -> None:
        """The bytes are where :meth:`landing` said."""
        passing, self._passing = self._passing, []
        if passing:
            _copy_rows(self._short, [run.raw for run in passing], find)

    def copy(self, raw: torch.Tensor, addresses: Sequence[int], find: FindBytes) -> None:
        """Copy it to where it goes.

        Args:
            raw: the bucket, in one run of host memory.
            addresses, find: as above.
        """
        runs = self._single
        copy_runs(HostCopies(runs.at(addresses), runs.starts + raw.data_ptr(), runs.sizes))
        if self._strided:
            _copy_rows(self._strided, [raw[each.at : each.at + each.total] for each in self._strided], find)


class _Runs:
    """Runs of places, as columns.

    Attributes:
        starts: where each starts in the bucket, in bytes.
        sizes: of each, in bytes.
    """

    def __init__(self, places: Sequence[PlacedBytes], numbers: dict[str, int]) -> None:
        fields = [(numbers[each.spec.name], *each[1:]) for each in places]
        number, start, at, nbytes, runs, stride = np.array(fields, np.int64).reshape(-1, 6).T
        of = np.repeat(np.arange(len(places)), runs)
        within = np.arange(len(of)) - np.repeat(runs.cumsum() - runs, runs)
        self._numbers, self.sizes = number[of], nbytes[of]
        self._offsets, self.starts = start[of] + within * stride[of], at[of] + within * nbytes[of]

    def at(self, addresses: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """The address of each, in tensors that lie at these."""
        if not len(self.sizes):
            return self._offsets
        return np.array(addresses, np.int64)[self._numbers] + self._offsets


def _copy_rows(places: Sequence[PlacedBytes], given: Sequence[torch.Tensor], find: FindBytes) -> None:
    """Copy the bytes of each place to its rows."""
    targets = [rows_of(find(place.spec.name), place) for place in places]
    copy_views(targets, [raw.view(place.runs, place.nbytes) for place, raw in zip(places, given, strict=True)])


def rows_of(raw: torch.Tensor, place: PlacedBytes) -> torch.Tensor:
    """The runs of a place in the bytes of its tensor."""
    return raw.as_strided((place.runs, place.nbytes), (place.stride, 1), raw.storage_offset() + place.start)
