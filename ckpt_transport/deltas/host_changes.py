"""NumPy finds what differs in a chunk of two versions that lie alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ckpt_transport.deltas.sections import BLOCK_UNITS, block_count

WORD_BYTES = 8
PLACE_BITS = 16
PLACES_OF_A_WORD = 4
DENSE = 0.1
"""From such a share on NumPy finds what differs without jumping from one to the next. Below it, words are faster."""
SPARSE = 16
"""Where one unit of so many differs, or more, a mask may be what takes the fewest bytes."""
RARE = 10
"""Of so many words one differs, where eight are looked at together."""

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Units = npt.NDArray[np.unsignedinteger]
Places = npt.NDArray[np.intp]


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
    """What differs in a chunk. Where few units do, they are looked for in words that do."""
    if unit < WORD_BYTES and now.size % WORD_BYTES == 0:
        words = old.view(np.uint64), now.view(np.uint64)
        differ = words[0] != words[1]
        count = int(np.count_nonzero(differ))
        if count <= (1 - (1 - DENSE) ** (WORD_BYTES // unit)) * differ.size:
            return _changed_within(_where(differ, count), *words, unit)
    units = now.view(f"u{unit}")
    each_differs = old.view(units.dtype) != units
    places = np.flatnonzero(each_differs)
    edges = np.arange(block_count(units.size) + 1) * BLOCK_UNITS
    bits = np.packbits(each_differs, bitorder="little")
    return ChangedUnits(_counts(places, edges), places.astype(np.uint16), units.take(places), bits)


def _changed_within(found: Places, old: Words, now: Words, unit: int) -> ChangedUnits:
    """As :func:`changed_units`, of units in the words that were found to differ."""
    each = WORD_BYTES // unit
    values = now.take(found).view(f"u{unit}")
    units = np.flatnonzero(old.take(found).view(values.dtype) != values)
    edges = np.arange(block_count(now.size * each) + 1) * (BLOCK_UNITS // each)
    counts = _counts(units, found.searchsorted(edges) * each)
    places, bits = _places_in_blocks(found, each).take(units), None
    if units.size * SPARSE > now.size * each:
        bits = np.packbits(old.view(values.dtype) != now.view(values.dtype), bitorder="little")
    return ChangedUnits(counts, places, values.take(units), bits)


def _counts(places: Places, edges: Places) -> npt.NDArray[np.uint32]:
    """How many places are between neighbouring edges."""
    return np.diff(places.searchsorted(edges)).astype(np.uint32)


def _places_in_blocks(words: Places, each: int) -> npt.NDArray[np.uint16]:
    """The places of all units of these words within their blocks; a word has ``each`` units.

    As many places as a word of 64 bits has room for are computed by one multiplication, of a number that has a one for
    each of them.
    """
    together = min(each, PLACES_OF_A_WORD)
    ones = sum(1 << PLACE_BITS * number for number in range(together))
    ascending = sum(number << PLACE_BITS * number for number in range(together))
    firsts = words.astype(f"u{2 * together}")
    firsts &= BLOCK_UNITS // each - 1
    firsts *= each * ones
    firsts += ascending
    if each == together:
        return firsts.view(np.uint16)
    placed = np.empty((len(words), each // together), firsts.dtype)
    for number in range(each // together):
        np.add(firsts, number * together * ones, out=placed[:, number])
    return placed.reshape(-1).view(np.uint16)


def _where(differ: npt.NDArray[np.bool_], count: int) -> Places:
    """Which are true. Where few are, eights are looked at first: NumPy jumps from one to the next there, and waits."""
    if differ.size % 8 or count * RARE > differ.size:
        return np.flatnonzero(differ)
    eights = differ.view(np.uint64)
    found = np.flatnonzero(eights != 0)
    return _composed(found, np.flatnonzero(eights.take(found).view(np.bool_)), 8)


def _composed(found: Places, within: Places, each: int) -> Places:
    """The places of what was found within parts of ``each``, of which ``found`` are the places. It is a power of 2."""
    shift = each.bit_length() - 1
    places = found.take(within >> shift)
    places <<= shift
    places += within & (each - 1)
    return places
