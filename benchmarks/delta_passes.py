"""Measures each pass of NumPy in which one core finds what differs, as a share of the time of a copy.

The passes are those of ``ckpt_transport/deltas/host_changes.py``, one after the other, over chunks of 1 MiB of BF16. A
diff at 0.4 of the rate of a copy takes 2.5 times as long as the copy: that is what all passes may take together. Times
are the processor's, in turns with the copy's, and ratios the median of rounds. Usage: ``python -m
benchmarks.delta_passes``.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks._report import Row, report
from ckpt_transport.deltas.host_changes import changed_units, eights_that, places_in

CHUNK_BYTES = 1 << 20
BLOCKS = CHUNK_BYTES // 2 >> 16
SHARES = (0.01, 0.05)
MOST = "<=2.5"
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Found = tuple[np.ndarray[Any, Any], ...]


class _Passes:
    """Finds what differs in a chunk, and notes how long each pass takes."""

    def __init__(self) -> None:
        self.taken: defaultdict[str, float] = defaultdict(float)

    def find(self, old: Bytes, now: Bytes) -> Found:
        """Counts, places and values, as :func:`ckpt_transport.deltas.host_changes.changed_units` has them."""
        units, before = now.view(np.uint16), old.view(np.uint16)
        differs = self._timed("compare", lambda: before != units)
        eights = differs.view(np.uint64)

        def find_eights() -> Any:
            differ = eights != 0
            return eights_that(differ, int(np.count_nonzero(differ)))

        found = self._timed("find eights that have a difference", find_eights)
        places = self._timed("find units in these", lambda: places_in(eights, found))
        values = self._timed("take values", lambda: units.take(places))
        edges = np.arange(BLOCKS + 1) << 16
        counts, narrow = self._timed(
            "count in blocks", lambda: (np.diff(places.searchsorted(edges)), places.astype(np.uint16))
        )
        return counts, narrow, values

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        began = time.thread_time()
        made = work()
        self.taken[name] += time.thread_time() - began
        return made


def measure(mib: int = 64, rounds: int = 5) -> list[Row]:
    """A row for each pass at each density, and for all together."""
    return [row for share in SHARES for row in _measure(mib << 20, share, rounds)]


def _measure(nbytes: int, share: float, rounds: int) -> list[Row]:
    torch.manual_seed(0)
    base = torch.randint(0, 256, (nbytes,), dtype=torch.uint8)
    new = base.clone()
    units = new.view(torch.int16)
    units[torch.randperm(len(units))[: round(share * len(units))]] ^= 1
    old, now = base.numpy(), new.numpy()
    starts = range(0, nbytes, CHUNK_BYTES)
    chunks = [(old[at : at + CHUNK_BYTES], now[at : at + CHUNK_BYTES]) for at in starts]
    expected = changed_units(*chunks[0], 2)
    as_found = expected.counts, expected.places, expected.values
    compared: Iterable[tuple[Any, Any]] = zip(_Passes().find(*chunks[0]), as_found, strict=True)
    assert all(np.array_equal(mine, theirs) for mine, theirs in compared)
    copied, taken = np.empty(nbytes, np.uint8), defaultdict[str, list[float]](list)
    for _ in range(rounds):
        began = time.thread_time()
        for number, (_, now) in enumerate(chunks):
            np.copyto(copied[number * CHUNK_BYTES :][:CHUNK_BYTES], now)
        copying, passes = time.thread_time() - began, _Passes()
        for pair in chunks:
            passes.find(*pair)
        for name, seconds in [*passes.taken.items(), ("all passes", sum(passes.taken.values()))]:
            taken[name].append(seconds / copying)
    return [
        Row(f"{name}, {share:.0%} changed", median(each), "a copy", MOST if name == "all passes" else "", "")
        for name, each in taken.items()
    ]


def main(
    mib: Annotated[int, typer.Option(help="Size of the range.")] = 64,
    rounds: Annotated[int, typer.Option(help="Repetitions.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None,
) -> None:
    """Measure what a diff on the host consists of."""
    report(measure(mib, rounds), json)


if __name__ == "__main__":
    typer.run(main)
