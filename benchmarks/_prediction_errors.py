"""How far predictions of the simulator are off, and whether the faster of two plans was predicted to be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import median, quantiles
from typing import NamedTuple

from benchmarks._report import Row

APART = 1.05
"""Plans whose times are closer than by this factor have no order."""


class PredictedRun(NamedTuple):
    """A plan that was predicted, and run.

    Attributes:
        name: what people call the plan.
        alike: equal for plans that are compared with each other.
        predicted, measured: seconds.
    """

    name: str
    alike: object
    predicted: float
    measured: float


def error_rows(what: str, errors: Sequence[float]) -> Iterator[Row]:
    """The median, the 95th percentile and the worst of absolute errors, as parts of one."""
    detail = f"{len(errors)} {what}"
    yield Row(f"error of {what}: median", median(errors), "measured", "<=0.10", detail)
    yield Row(
        f"error of {what}: 95th percentile", quantiles(errors, n=20, method="inclusive")[-1], "measured", "", detail
    )
    yield Row(f"error of {what}: worst", max(errors), "measured", "<=0.25", detail)


def order_row(runs: Sequence[PredictedRun]) -> Row:
    """The share of pairs of plans that measured apart and were predicted in that order; names the others."""
    apart = [
        (one, other)
        for one, other in combinations(runs, 2)
        if one.alike == other.alike and max(one.measured, other.measured) > min(one.measured, other.measured) * APART
    ]
    wrong = [
        f"{one.name} and {other.name}"
        for one, other in apart
        if (one.predicted < other.predicted) != (one.measured < other.measured)
    ]
    others = f"; not: {'; '.join(wrong)}" if wrong else ""
    detail = f"{len(apart) - len(wrong)} of {len(apart)} pairs of plans{others}"
    return Row("order of plans that measured 5 % apart", 1 - len(wrong) / max(len(apart), 1), "right", ">=1", detail)
