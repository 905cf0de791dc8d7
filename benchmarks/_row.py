"""Holds one measured ratio against its target."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

import msgspec

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """One measured ratio.

    Attributes:
        name: what was measured.
        ratio: of its figure to that of ``against``; no unit.
        against: what was measured next to it, in the same run.
        target: what the ratio should be, as ``>=0.7``; empty where there is no target.
        detail: the figures behind it, with units.
        phases: milliseconds of what single updates consisted of, by which update it was.
    """

    name: str
    ratio: float
    against: str
    target: str
    detail: str
    phases: Mapping[str, Mapping[str, float]] = {}

    @property
    def met(self) -> bool | None:
        """Whether the ratio meets its target; None without one."""
        for sign, compare in _COMPARISONS.items():
            if self.target.startswith(sign):
                return compare(self.ratio, float(self.target.removeprefix(sign)))
        return None
