"""Elements that several sources bring are exchanged once: ranks that have replicas all say what has changed in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from ckpt_transport.deltas.sections import UNIT_DTYPES
from ckpt_transport.errors import DeltaRefusedError


class Elements(NamedTuple):
    """Where elements of one size are, and what they become: :class:`~ckpt_transport.deltas.DeviceExchange` does it."""

    addresses: torch.Tensor
    values: torch.Tensor


def each_once(elements: Mapping[int, Elements]) -> dict[int, Elements]:
    """The same elements, none of them twice.

    Args:
        elements: by their size in bytes. One source may say of a wide element what another says of its parts, so that
            all become elements of the smallest size.

    Raises:
        DeltaRefusedError: two that are one become different values.
    """
    if not elements:
        return {}
    unit = min(elements)
    parts = [_cut(each, size, unit) for size, each in elements.items()]
    addresses, order = torch.cat([part.addresses for part in parts]).sort(stable=True)
    values = torch.cat([part.values for part in parts])[order]
    if not len(addresses):
        return {}
    again = addresses[1:] == addresses[:-1]
    if bool((again & (values[1:] != values[:-1])).any()):
        raise DeltaRefusedError("two source ranks bring different values of one element")
    first = torch.cat([again.new_ones(1), ~again])
    return {unit: Elements(addresses[first], values[first])}


def _cut(elements: Elements, size: int, unit: int) -> Elements:
    within = torch.arange(0, size, unit, device=elements.addresses.device)
    return Elements((elements.addresses.unsqueeze(1) + within).flatten(), elements.values.view(UNIT_DTYPES[unit]))
