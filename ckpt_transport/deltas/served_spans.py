"""Where elements of a source may go, as spans of addresses: sources whose spans lie apart bring no element twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ckpt_transport.deltas.copied_rows import Numbers, Rows


class ServedSpans(NamedTuple):
    """Spans of addresses that lie apart, ascending.

    Attributes:
        low, high: the first address of each, and the one behind the last.
    """

    low: Numbers
    high: Numbers

    @classmethod
    def of(cls, rows: Sequence[Rows], bases: Numbers) -> ServedSpans:
        """That rows of several layers go to; what lies between the runs of a row is in its span, too."""
        found = [_span_of(each, bases) for each in rows] or [(np.empty(0, np.int64), np.empty(0, np.int64))]
        low, high = (np.concatenate(side) for side in zip(*found, strict=True))
        order = np.argsort(low, kind="stable")
        low, reached = low[order], np.maximum.accumulate(high[order])
        begins = np.flatnonzero(np.concatenate([np.ones(len(low[:1]), np.bool_), low[1:] >= reached[:-1]]))
        ends = np.concatenate([begins[1:], [len(low)]])[: len(begins)]
        return cls(low[begins], reached[ends - 1])


def go_apart(spans: Sequence[ServedSpans]) -> bool:
    """Whether no address is in the spans of two."""
    if len(spans) < 2:
        return True
    low, high = (np.concatenate(side) for side in zip(*spans, strict=True))
    order = np.argsort(low, kind="stable")
    return not bool((low[order][1:] < high[order][:-1]).any())


def _span_of(rows: Rows, bases: Numbers) -> tuple[Numbers, Numbers]:
    """The span of each row: of the steps along its outermost dimension that are within what is placed of the tensor."""
    start = bases[rows.target] + rows.write
    several = rows.counts > 1
    outer = np.argmax(several, axis=1)[:, None]
    stride, count, write = (np.take_along_axis(each, outer, 1)[:, 0] for each in (rows.reads, rows.counts, rows.writes))
    within, steps = (((rows.counts - 1) * each).sum(axis=1) + rows.run for each in (rows.reads, rows.writes))
    within, steps = within - (count - 1) * stride, steps - (count - 1) * write
    first = np.maximum((rows.low - rows.begin - within) // stride + 1, 0)
    last = np.minimum((rows.high - 1 - rows.begin) // stride, count - 1)
    is_strided = several.any(axis=1)
    low = np.where(is_strided, first * write, rows.low - rows.begin)
    high = np.where(is_strided, last * write + steps, rows.high - rows.begin)
    return start + low, start + high
