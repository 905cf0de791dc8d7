"""Who publishes a step's weights has them lent or copied, whichever brings them to the sinks sooner."""

from __future__ import annotations

from collections import abc, defaultdict
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

import torch

from ckpt_transport.checkpoint import Mapping, TensorPairs, Tensors, comes_in_pairs, parts_of
from ckpt_transport.checkpoint.scattered import are_runs_of_bytes
from ckpt_transport.control import addresses
from ckpt_transport.memory import name_of
from ckpt_transport.rates import HostRates, LinkKind, kept

ASSUMED = {LinkKind.MEMORY: 10e9, LinkKind.FROM_DEVICE: 25e9, LinkKind.NETWORK: 1.25e9}
"""Bytes per second that a link counts with until it is measured."""
NOT_MEASURED = HostRates(())
_layout, _device, _nbytes = map(attrgetter, ("layout", "device", "nbytes"))


class Intake(NamedTuple):
    """How a version is taken in.

    Attributes:
        lend: its tensors are sent from where they lie; else they are copied first.
        why: in words, for the report.
    """

    lend: bool
    why: str


def intake_of(tensors: Tensors | TensorPairs, mapping: Mapping | None, sinks: Sequence[str]) -> Intake:
    """How a step's weights are taken in. What is wrong with them is said by whoever does that."""
    if comes_in_pairs(tensors):
        return Intake(lend=False, why="registered, because its tensors come one by one")
    if mapping is not None and mapping.cuts_columns:
        return Intake(lend=False, why="registered, because columns of tensors are no runs of memory to be lent")
    values = tensors.values() if isinstance(tensors, abc.Mapping) else ()
    parts = [part for value in values for part in parts_of(value)]
    return choose_intake(parts, near=all(map(addresses.stays_on_host, sinks)), rates=kept())


def choose_intake(parts: Sequence[torch.Tensor], *, near: bool, rates: HostRates | None) -> Intake:
    """Choose by what each way takes until all sinks have the bytes. Where both take as long, registering is chosen.

    Who lends has buckets gathered while others are on their way; who registers copies everything before. So lending is
    sooner where the two use different links. Copies from host memory to sinks of this host all use that memory, and
    take as long one way as the other; registering then holds requests for one of the two copies only.

    Args:
        parts: what this rank has of the version.
        near: all sinks are on this host.
        rates: of this host; None when nobody has measured them.
    """
    if not parts:
        return Intake(lend=False, why="registered, because there is nothing to lend")
    if set(map(_layout, parts)) != {torch.strided} or not are_runs_of_bytes(parts):
        return Intake(lend=False, why="registered, because tensors that are not contiguous cannot be lent")
    known = NOT_MEASURED if rates is None else rates
    nbytes: defaultdict[torch.device, int] = defaultdict(int)
    for device, size in zip(map(_device, parts), map(_nbytes, parts), strict=True):
        nbytes[device] += size
    gathering = {device: size / _rate_from(device, known) for device, size in nbytes.items()}
    all_bytes = sum(nbytes.values())
    sending = all_bytes / _rate(LinkKind.MEMORY if near else LinkKind.NETWORK, known)
    on_host = sum(seconds for device, seconds in gathering.items() if device.type == "cpu")
    copying = max(gathering.values())
    registered = copying + sending
    lent = max(copying, sending + (on_host if near else 0.0))
    if lent < registered:
        return Intake(
            lend=True,
            why=f"lent, in about {lent:.3g} s by the cost model; to register a copy and send that takes "
            f"{registered:.3g} s",
        )
    return Intake(
        lend=False,
        why=f"registered, in about {registered:.3g} s by the cost model, with requests held for {sending:.3g} s of it; "
        f"lending takes {lent:.3g} s, and may hold them throughout",
    )


def _rate_from(device: torch.device, rates: HostRates) -> float:
    """Bytes per second of a copy from there into host memory."""
    if device.type == "cuda":
        return _rate(LinkKind.FROM_DEVICE, rates, name_of(device))
    return _rate(LinkKind.MEMORY, rates)


def _rate(kind: LinkKind, rates: HostRates, source: str = "") -> float:
    return rates.rate(kind, source=source) or ASSUMED[kind]
