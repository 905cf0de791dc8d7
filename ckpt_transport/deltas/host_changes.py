"""NumPy finds what differs in a chunk of two versions that lie alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ckpt_transport.deltas.sections import BLOCK_UNITS, block_count

EIGHT = 8
"""Units whose marks are looked at together."""
DENSE = 0.1
"""From such a share on NumPy finds what differs without jumping from one to the next. Below it, eights are faster."""
SPARSE = 16
"""Where one unit of so many differs, or more, a mask may be what takes the fewest bytes."""
RARE = 10
"""Of so many eights one has a difference, where four of them are looked at together."""

Bytes = npt.NDArray[np.uint8]
Units = npt.NDArray[np.unsignedinteger]
Places = npt.NDArray[np.intp]
Marks = npt.NDArray[np.bool_]


class ChangedUnits(NamedTuple):
    """What differs in a chunk.

    Attributes:
        counts: how many units differ in each of its blocks.
        places: which do, within their blocks.
        values: what they become.
        known_bits: one for each unit, set where it differs; None where few do.
    """

    counts: npt.NDArray[np.uint32]
    places: npt.NDArray[np.uint16]
    values: Units
    known_bits: Bytes | None = None

    def bits(self, units: int) -> Bytes:
        """One for each of so many units, set where it differs; the lowest bit of a byte first."""
        if self.known_bits is not None:
            return self.known_bits
        differs = np.zeros(units, np.bool_)
        starts = np.arange(self.counts.size) * BLOCK_UNITS
        differs[self.places + np.repeat(starts, self.counts)] = True
        return np.packbits(differs, bitorder="little")


def changed_units(old: Bytes, now: Bytes, unit: int) -> ChangedUnits:
    """What differs in a chunk. Either version is read once, and what is read anew is in a cache."""
    units = now.view(f"u{unit}")
    differs = old.view(units.dtype) != units
    places = _where(differs)
    counts = np.diff(places.searchsorted(np.arange(block_count(units.size) + 1) * BLOCK_UNITS)).astype(np.uint32)
    bits = np.packbits(differs, bitorder="little") if places.size * SPARSE > units.size else None
    return ChangedUnits(counts, places.astype(np.uint16), units.take(places), bits)


def _where(differs: Marks) -> Places:
    """Which units differ. Where few do, eights that have one are looked for first, and units within them."""
    if differs.size % EIGHT:
        return np.flatnonzero(differs)
    eights = differs.view(np.uint64)
    differ = eights != 0
    count = int(np.count_nonzero(differ))
    if count > (1 - (1 - DENSE) ** EIGHT) * differ.size:
        return np.flatnonzero(differs)
    return places_in(eights, eights_that(differ, count))


def eights_that(differ: Marks, count: int) -> Places:
    """Which are true. Where few are, fours are looked at first: NumPy jumps from one to the next there, and waits."""
    if differ.size % 4 or count * RARE > differ.size:
        return np.flatnonzero(differ)
    fours = differ.view(np.uint32)
    return places_in(fours, np.flatnonzero(fours != 0))


def places_in(groups: Units, found: Places) -> Places:
    """The places of marks that are set in some groups, of which ``found`` are the places; a group has 4 or 8 marks."""
    each = groups.itemsize
    within = np.flatnonzero(groups.take(found).view(np.bool_))
    places = found.take(within >> (each.bit_length() - 1))
    places *= each
    within &= each - 1
    places += within
    return places
