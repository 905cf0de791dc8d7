"""Elements in host memory, as they are exchanged: a place each, in 32 bits, counted from an address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.deltas.elements import Elements, each_once
from ckpt_transport.deltas.sections import UNIT_DTYPES

Units = npt.NDArray[np.integer[Any]]
Places = npt.NDArray[np.int32] | npt.NDArray[np.int64]


class HostElements(NamedTuple):
    """Where some elements are, and what they become.

    Attributes:
        start: an address.
        step: bytes between one place and the next: those of an element, or 1.
        places: of the first byte of each element, counted from ``start``; not negative.
        values: what they become; contiguous. An exchange writes to them.
    """

    start: int
    step: int
    places: Places
    values: Units

    @classmethod
    def at(cls, addresses: npt.NDArray[np.int64], values: Units) -> HostElements:
        """Of which the addresses are known, one at least."""
        start = int(addresses.min())
        places = addresses - start
        step = values.itemsize if not (places % values.itemsize).any() else 1
        places //= step
        narrow = int(places.max()) < 1 << 31
        return cls(start, step, places.astype(np.int32) if narrow else places, values)

    @property
    def addresses(self) -> npt.NDArray[np.int64]:
        """Of the first byte of each."""
        found = self.places.astype(np.int64)
        found *= self.step
        found += self.start
        return found

    @property
    def ends(self) -> tuple[int, int]:
        """Addresses between which all of them are."""
        first, last = int(self.places.min()), int(self.places.max())
        return self.start + first * self.step, self.start + last * self.step + self.values.itemsize


def each_once_on_host(parts: Sequence[HostElements]) -> list[HostElements]:
    """The same elements, none of them twice. Only those are compared that lie between each other.

    Args:
        parts: none of them empty.

    Raises:
        DeltaRefusedError: two that are one become different values.
    """
    found: list[HostElements] = []
    group: list[HostElements] = []
    reached = 0
    for (low, high), part in sorted(((part.ends, part) for part in parts), key=lambda each: each[0]):
        if group and low >= reached:
            found += _compared(group)
            group = []
        group.append(part)
        reached = max(reached, high)
    return [*found, *_compared(group)]


def _compared(group: Sequence[HostElements]) -> Sequence[HostElements]:
    if len(group) < 2:
        return group
    by_unit: dict[int, list[HostElements]] = {}
    for part in group:
        by_unit.setdefault(part.values.itemsize, []).append(part)
    joined = each_once(
        {
            unit: Elements(
                torch.from_numpy(np.concatenate([part.addresses for part in some])),
                torch.from_numpy(np.concatenate([part.values.view(f"i{unit}") for part in some])).view(
                    UNIT_DTYPES[unit]
                ),
            )
            for unit, some in by_unit.items()
        }
    )
    return [HostElements.at(each.addresses.numpy(), each.values.numpy()) for each in joined.values()]
