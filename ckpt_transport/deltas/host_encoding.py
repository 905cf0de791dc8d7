"""On the host all cores look for what differs, each in chunks that stay in its cache."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.deltas.all_cores import by_all_cores
from ckpt_transport.deltas.encoded import Encoded
from ckpt_transport.deltas.sections import BLOCK_UNITS, block_count, densest, sections
from ckpt_transport.memory import copy_bytes
from ckpt_transport.planning import DeltaForm

CHUNK_BYTES = 1 << 20
"""About so many of either version are compared at a time."""
WORD_BYTES = 8
PLACE_BITS = 16
PLACES_OF_A_WORD = 4
DENSE = 0.1
"""From such a share on NumPy finds what differs without jumping from one to the next. Below it, words are faster."""
RARE = 10
"""Of so many words one differs, where eight are looked at together."""

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Units = npt.NDArray[np.unsignedinteger]
Places = npt.NDArray[np.intp]


class _Changes(NamedTuple):
    """What differs in a chunk.

    Attributes:
        counts: how many units differ in each of its blocks.
        places: which do, within their blocks.
        values: what they become.
        bits: one for each unit, set where it differs; None where few do.
    """

    counts: npt.NDArray[np.uint32]
    places: npt.NDArray[np.uint16]
    values: Units
    bits: Bytes | None = None


def encode_on_host(base: torch.Tensor, new: torch.Tensor, unit: int) -> Encoded:
    """As :func:`ckpt_transport.deltas.encode`."""
    old, now = base.numpy(), new.numpy()
    length = max(1, CHUNK_BYTES // (unit * BLOCK_UNITS)) * BLOCK_UNITS * unit
    chunks = [slice(start, start + length) for start in range(0, now.size, length)]
    changes = by_all_cores(lambda chunk: _changes(old[chunk], now[chunk], unit), chunks)
    counts = [each.places.size for each in changes]
    units, count = now.size // unit, sum(counts)
    if not count:
        return Encoded.nothing(new.device)
    form = densest(unit, units, count)
    if form is DeltaForm.WHOLE:
        whole = torch.empty_like(new)
        copy_bytes(whole, new)
        return Encoded(form, units, whole)
    at = sections(form, unit, units, count)
    raw = np.zeros(at.end, np.uint8)
    values = raw[at.values :].view(f"u{unit}")
    if form is DeltaForm.LIST:
        np.concatenate([each.counts for each in changes], out=raw[: 4 * block_count(units)].view(np.uint32))
        np.concatenate([each.places for each in changes], out=raw[at.places :][: 2 * count].view(np.uint16))
    else:
        mask = np.concatenate(by_all_cores(lambda each: _bits(each, length // unit), changes))
        raw[: -(-units // 8)] = mask[: -(-units // 8)]
    np.concatenate([each.values for each in changes], out=values)
    return Encoded(form, count, torch.from_numpy(raw))


def _changes(old: Bytes, now: Bytes, unit: int) -> _Changes:
    """What differs in a chunk. Where few units do, they are looked for in words that do."""
    if unit < WORD_BYTES and now.size % WORD_BYTES == 0:
        words = old.view(np.uint64), now.view(np.uint64)
        differ = words[0] != words[1]
        count = int(np.count_nonzero(differ))
        if count <= (1 - (1 - DENSE) ** (WORD_BYTES // unit)) * differ.size:
            return _changes_within(_where(differ, count), *words, unit)
    units = now.view(f"u{unit}")
    each_differs = old.view(units.dtype) != units
    places = np.flatnonzero(each_differs)
    edges = np.arange(block_count(units.size) + 1) * BLOCK_UNITS
    bits = np.packbits(each_differs, bitorder="little")
    return _Changes(_counts(places, edges), places.astype(np.uint16), units.take(places), bits)


def _changes_within(found: Places, old: Words, now: Words, unit: int) -> _Changes:
    """As :func:`_changes`, of units in the words that were found to differ."""
    each = WORD_BYTES // unit
    values = now.take(found).view(f"u{unit}")
    units = np.flatnonzero(old.take(found).view(values.dtype) != values)
    edges = np.arange(block_count(now.size * each) + 1) * (BLOCK_UNITS // each)
    counts = _counts(units, found.searchsorted(edges) * each)
    return _Changes(counts, _places_in_blocks(found, each).take(units), values.take(units))


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


def _bits(changes: _Changes, units: int) -> Bytes:
    """The bits of a chunk of so many units."""
    if changes.bits is not None:
        return changes.bits
    differs = np.zeros(units, np.bool_)
    starts = np.arange(changes.counts.size) * BLOCK_UNITS
    differs[changes.places + np.repeat(starts, changes.counts)] = True
    return np.packbits(differs, bitorder="little")


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
