"""What differs is divided among those who serve it: each carrier holds elements that the same shares have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.deltas.all_cores import by_all_cores
from ckpt_transport.deltas.carriers import DeltaRange, Difference, Differences
from ckpt_transport.deltas.decoding import decode
from ckpt_transport.deltas.encoded import Encoded
from ckpt_transport.deltas.host_encoding import encode_elements
from ckpt_transport.errors import DeltaRefusedError
from ckpt_transport.memory import StridedRange
from ckpt_transport.planning import PlacedTensor, ServedShares, Share, name_of_share

MOST_SHARES = 62
"""Where there are more, everybody is sent everything: an element has a bit for each."""

Numbers = npt.NDArray[np.int64]


class _Boxes(NamedTuple):
    """What shares have of an extent: one row for each strided range and each share that has it.

    Attributes:
        start, end: its first byte in the extent, and the byte behind the last one.
        nbytes, stride: of its runs; a stride of 0 where there is one run.
        share: the number of the share.
    """

    start: Numbers
    end: Numbers
    nbytes: Numbers
    stride: Numbers
    share: Numbers


class ForShares:
    """Knows which elements of a version each share has.

    Args:
        tensors: of the version, and where they lie here.
        served: what sinks serve of it.

    Raises:
        DeltaRefusedError: a share has bytes that its tensor has not; names the tensor.
    """

    def __init__(self, tensors: Sequence[PlacedTensor], served: ServedShares) -> None:
        self._served = served
        self._numbers = tuple(range(len(served.shares) if len(served.shares) <= MOST_SHARES else 0))
        self._dtype: type[np.integer] = np.uint8 if len(self._numbers) <= 8 else np.int64
        self._boxes = _boxes(tensors, [served.shares[number] for number in self._numbers])

    def divide(self, differences: Differences) -> Differences:
        """The same differences, in carriers of which each is for those who serve its elements.

        What no sink serves is in none of them. Where nothing is left for a sink, all are sent an empty one.
        """
        if not self._numbers:
            return differences
        divided = [part for parts in by_all_cores(self._parts, differences.found) for part in parts]
        if {number for part in divided for number in part.shares} != set(self._numbers):
            first = differences.found[0]
            divided.append(Difference(first.range, Encoded.nothing(first.encoded.raw.device), self._numbers))
        return Differences(tuple(divided), differences.elements, tuple(map(name_of_share, self._served.shares)))

    def _parts(self, difference: Difference) -> list[Difference]:
        where, encoded, _ = difference
        found = decode(encoded.raw.cpu(), encoded.form, where.unit, where.nbytes, encoded.count)
        places, values = found.places.numpy(), found.values.numpy()
        bits = self._bits_of(where, places)
        known = np.flatnonzero(np.bincount(bits)) if bits.dtype == np.uint8 else np.unique(bits)
        parts = []
        for each in known.tolist():
            shares = tuple(number for number in self._numbers if each >> number & 1)
            if not shares and not self._served.everything:
                continue
            if len(known) == 1:
                parts.append(difference._replace(shares=shares))
            else:
                some = np.flatnonzero(bits == each)
                parts.append(_part(where, places[some], values[some], shares, encoded.raw.device))
        return parts

    def _bits_of(self, where: DeltaRange, places: Numbers) -> npt.NDArray[np.integer]:
        """Of each element a bit for each share that has it."""
        bits: npt.NDArray[np.integer] = np.zeros(len(places), self._dtype)
        boxes = self._boxes.get(where.extent)
        if boxes is None:
            return bits
        near = np.flatnonzero((boxes.start < where.offset + where.nbytes) & (boxes.end > where.offset))
        starts, ends, nbytes, strides, shares = (column[near] for column in boxes)
        firsts = np.searchsorted(places, -(-(starts - where.offset) // where.unit))
        lasts = np.searchsorted(places, (ends - where.offset) // where.unit)
        rows = zip(*(each.tolist() for each in (firsts, lasts, starts, nbytes, strides, shares)), strict=True)
        for first, last, start, length, stride, share in rows:
            bit = self._dtype(1 << share)
            if not stride:
                np.bitwise_or(bits[first:last], bit, out=bits[first:last])
            elif first < last:
                within = places[first:last] * where.unit
                within += where.offset - start
                within %= stride
                np.bitwise_or(bits[first:last], (within <= length - where.unit) * bit, out=bits[first:last])
        return bits


def _part(
    where: DeltaRange,
    places: Numbers,
    values: npt.NDArray[np.integer],
    shares: tuple[int, ...],
    device: torch.device,
) -> Difference:
    """Some elements of a range, in a range that is no longer than they need."""
    first, last = int(places[0]), int(places[-1])
    units = last - first + 1
    narrow = where._replace(offset=where.offset + first * where.unit, nbytes=units * where.unit)
    encoded = encode_elements(places - first, values, units)
    return Difference(narrow, replace(encoded, raw=encoded.raw.to(device)), shares)


def _boxes(tensors: Sequence[PlacedTensor], shares: Sequence[Share]) -> dict[int, _Boxes]:
    """What shares have, by extent."""
    placed: defaultdict[str, list[PlacedTensor]] = defaultdict(list)
    for tensor in tensors:
        placed[tensor.spec.name].append(tensor)
    found: defaultdict[int, list[tuple[int, StridedRange]]] = defaultdict(list)
    for number, share in enumerate(shares):
        for name, part in share.reads():
            for tensor in placed.get(name, ()):
                _check_within(part, tensor)
                for clipped in part.clip(tensor.start, tensor.start + tensor.nbytes):
                    found[tensor.extent].append((number, clipped.shifted(tensor.offset - tensor.start)))
    return {extent: _columns(rows) for extent, rows in found.items()}


def _check_within(part: StridedRange, tensor: PlacedTensor) -> None:
    apart = part.runs == 1 or part.stride >= part.nbytes
    if not (part.start >= 0 and part.nbytes > 0 and part.runs > 0 and apart and part.end <= tensor.spec.nbytes):
        raise DeltaRefusedError(f"a sink says that it serves {part} of {tensor.spec}, which has no such bytes")


def _columns(rows: Sequence[tuple[int, StridedRange]]) -> _Boxes:
    columns = zip(
        *((each.start, each.end, each.nbytes, each.stride * (each.runs > 1), number) for number, each in rows),
        strict=True,
    )
    return _Boxes(*(np.array(column, np.int64) for column in columns))
