"""Where the elements of carriers go: what kernels find, and what the host finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.deltas import ElementMap, encode, locate_on_device, locate_on_host, of_one_range
from ckpt_transport.memory import StridedBytes
from ckpt_transport.planning import Carrier
from tests.unit.deltas.test_host_carriers import CPU, WIDTH, copied, placed

BASES = [1 << 40, (1 << 41) + 3]
Groups = Sequence[tuple[ElementMap, Sequence[Carrier]]]
Raw = Mapping[str, torch.Tensor]
Told = dict[tuple[int, int], int]
"""What becomes of an address and so many bytes from there on."""


def told_of(unit: int, addresses: npt.NDArray[np.int64], values: npt.NDArray[np.integer[Any]]) -> Told:
    found = dict(zip([(each, unit) for each in addresses.tolist()], values.view(f"u{unit}").tolist(), strict=True))
    assert len(found) == len(addresses), "an address comes twice"
    return found


def by_kernels(groups: Groups, raw: Raw, device: torch.device = CPU) -> Told:
    found: Told = {}
    brought = {name: each.to(device) for name, each in raw.items()}
    for unit, each in locate_on_device(groups, brought, torch.tensor(BASES, device=device)).items():
        found |= told_of(unit, each.addresses.cpu().numpy(), each.values.cpu().numpy())
    return found


def on_host(groups: Groups, raw: Raw) -> Told:
    found: Told = {}
    for known, group in groups:
        for part in locate_on_host(group, raw, known, np.array(BASES)):
            found |= told_of(part.values.itemsize, part.addresses, part.values)
    return found


def carried_of(
    nbytes: int, most: int, unit: int, share: float, generator: torch.Generator, prefix: str, shift: int = 0
) -> tuple[list[Carrier], dict[str, torch.Tensor]]:
    """Carriers of ranges of ``most`` bytes, of which a share has changed. Shifted ones begin at odd addresses."""
    base = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)
    new = base.clone()
    new.view(-1, unit)[torch.rand(nbytes // unit, generator=generator) < share, 0] ^= 5
    carriers, raw = [], {}
    for low in range(0, nbytes, most):
        encoded = encode(base[low : low + most], new[low : low + most], unit)
        name = f"{prefix}{low}"
        if encoded.count:
            carriers.append(Carrier(name, 0, low, min(most, nbytes - low), unit, encoded.form, encoded.count))
            raw[name] = torch.cat([encoded.raw[:shift], encoded.raw])[shift:]
    return carriers, raw


def loaded(
    tensors: Sequence[tuple[int, Sequence[str]]],
    units: Sequence[int],
    share: float,
    most: int,
    shift: int,
    seed: int,
    device: torch.device = CPU,
) -> tuple[Groups, Raw]:
    """Carriers of a version for each size of units, and where their elements go.

    Args:
        tensors: the height of each, and how a loader takes it.
        units, share, most, shift: as those of :func:`carried_of`.
        seed: of what has changed.
        device: where they are located. Their bytes are on the host.
    """
    version = placed([height for height, _ in tensors])
    nbytes = (version[-1].offset + version[-1].nbytes) // 8 * 8
    generator = torch.Generator().manual_seed(seed)
    groups: list[tuple[ElementMap, Sequence[Carrier]]] = []
    raw: dict[str, torch.Tensor] = {}
    for target, unit in enumerate(units):
        copies, at = [], 1
        for number, (height, hows) in enumerate(tensors):
            for how in hows:
                copies.append(copied(number, how, height, at)._replace(target=target))
                at += 2 * WIDTH * max(height, 3)
        known = ElementMap(version, [each.spec for each in version], StridedBytes.of(copies), device)
        carriers, brought = carried_of(nbytes, most, unit, share, generator, f"{unit}-", shift)
        groups += [(known, group) for group in of_one_range(carriers)]
        raw |= brought
    return groups, raw
