"""On the host all cores look for what differs, each in chunks that stay in its cache, and encode it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch

from ckpt_transport.deltas.all_cores import by_all_cores
from ckpt_transport.deltas.encoded import Encoded
from ckpt_transport.deltas.encoded_layout import EncodedLayout, lay_out_encoded
from ckpt_transport.deltas.host_changes import Bytes, ChangedUnits, changed_units
from ckpt_transport.deltas.sections import BLOCK_UNITS, block_count
from ckpt_transport.memory import copy_bytes
from ckpt_transport.planning import DeltaForm

CHUNK_BYTES = 1 << 20
"""About so many of either version are compared at a time."""


def encode_on_host(
    base: Sequence[torch.Tensor], new: Sequence[torch.Tensor], unit: int, most: int
) -> list[Encoded] | None:
    """Encode ranges as :func:`ckpt_transport.deltas.encode` does; None beyond ``most`` bytes.

    No core waits for others between two ranges. All that is encoded lies in one memory.
    """
    pairs = [(old.numpy(), now.numpy()) for old, now in zip(base, new, strict=True)]
    length = max(1, CHUNK_BYTES // (unit * BLOCK_UNITS)) * BLOCK_UNITS * unit
    chunks = [(old[at : at + length], now[at : at + length]) for old, now in pairs for at in range(0, now.size, length)]
    try:
        found = iter(_found(chunks, unit, most))
    except _TooMuchError:
        return None
    changes = [[next(found) for _ in range(0, now.size, length)] for _, now in pairs]
    units = [now.size // unit for _, now in pairs]
    layout = lay_out_encoded(unit, units, [sum(each.places.size for each in some) for some in changes])
    if layout[-1].start + layout[-1].at.end > most:
        return None
    raw = np.empty(layout[-1].start + layout[-1].at.end, np.uint8)

    def write(number: int) -> Encoded:
        each, (_, now) = layout[number], pairs[number]
        if not each.elements:
            return Encoded.nothing(new[number].device)
        part = raw[each.start : each.start + each.at.end]
        if each.form is DeltaForm.WHOLE:
            copy_bytes(torch.from_numpy(part), torch.from_numpy(now))
        else:
            _write(part, each, changes[number], units[number], length // unit)
        return Encoded(each.form, each.elements, torch.from_numpy(part))

    return by_all_cores(write, range(len(pairs)))


class _TooMuchError(Exception):
    """What differs takes more bytes than it may."""


def _found(chunks: Sequence[tuple[Bytes, Bytes]], unit: int, most: int) -> list[ChangedUnits]:
    """What differs in each chunk.

    Raises:
        _TooMuchError: values alone take more than ``most`` bytes.
    """
    nbytes, adding = 0, threading.Lock()

    def find(chunk: tuple[Bytes, Bytes]) -> ChangedUnits:
        nonlocal nbytes
        changes = changed_units(*chunk, unit)
        with adding:
            nbytes += changes.values.nbytes
        if nbytes > most:
            raise _TooMuchError
        return changes

    return by_all_cores(find, chunks)


def _write(raw: Bytes, layout: EncodedLayout, changes: Sequence[ChangedUnits], units: int, of_a_chunk: int) -> None:
    """Write a list or a mask.

    Args:
        raw: where to.
        layout: of the range.
        changes: what differs in its chunks.
        units: of the range.
        of_a_chunk: units of all chunks but the last.
    """
    at, count = layout.at, layout.elements
    if layout.form is DeltaForm.LIST:
        ends = 4 * block_count(units), at.places + 2 * count
        np.concatenate([each.counts for each in changes], out=raw[: ends[0]].view(np.uint32))
        np.concatenate([each.places for each in changes], out=raw[at.places : ends[1]].view(np.uint16))
        raw[ends[0] : at.places] = raw[ends[1] : at.values] = 0
    else:
        mask = np.concatenate([each.bits(of_a_chunk) for each in changes])
        nbytes = -(-units // 8)
        raw[:nbytes], raw[nbytes : at.values] = mask[:nbytes], 0
    values = [each.values for each in changes]
    np.concatenate(values, out=raw[at.values : at.end].view(values[0].dtype))
