"""Who publishes a step's weights has them lent, or copied first where they cannot be lent.

Who lends has buckets gathered while others are on their way, and needs two of them as memory for that. Who registers
copies everything before, into memory of the version's size. So whatever can be lent is. That takes no longer where both
copies use different links, which overlap, nor where they use the same one, as the memory of a host, which has to do as
much either way. Parts that are cut into many short ranges take as long lent as registered: their plan does.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import NamedTuple, cast

import torch

from ckpt_transport.checkpoint import Loan, Mapping, TensorPairs, Tensors, comes_in_pairs, parts_of
from ckpt_transport.checkpoint.given import OWN_KINDS
from ckpt_transport.checkpoint.scattered import are_runs_of_bytes
from ckpt_transport.checkpoint.stored_version import made_on
from ckpt_transport.memory import SameForm, any_nested

_layout, _device, _nbytes = map(attrgetter, ("layout", "device", "nbytes"))


class Intake(NamedTuple):
    """How a version is taken in.

    Attributes:
        lend: its tensors are sent from where they lie; else they are copied first.
        why: in words, for the report.
    """

    lend: bool
    why: str


COPIED_FOR_DELTAS = Intake(lend=False, why="registered, because what has changed is found in copies on the host")
COMPARED_BESIDE = Intake(lend=True, why="lent, and compared with a copy of the version before on the same device")
MADE_BESIDE = Intake(lend=True, why="lent, and compared with a copy of the version before where it is computed")
LENT = Intake(lend=True, why="lent, because its tensors can be sent from where they lie")


class Intakes:
    """Says how each step's weights are taken in. What can be lent is recognised at the next step.

    Args:
        lends_such: whether tensors of this form were lent last, be it to be published.
    """

    def __init__(self, lends_such: Callable[[Sequence[torch.Tensor]], bool]) -> None:
        self._lends_such = lends_such
        self._lent: SameForm | None = None
        self._copies = _CopiesOnGpus()

    def for_deltas(self, tensors: Tensors | TensorPairs | Loan, mapping: Mapping | None, base: str) -> Intake:
        """How these are, where the next step's are compared with them.

        Args:
            tensors, mapping: the version.
            base: the setting ``delta_base``.
        """
        if base == "host":
            return COPIED_FOR_DELTAS
        if isinstance(tensors, Loan):
            backing = tensors.backing
            device = None if backing is None else made_on(backing)
            if backing is None or device is None or not self._takes_copy(device, backing.nbytes, base):
                return COPIED_FOR_DELTAS
            return MADE_BESIDE
        if not isinstance(tensors, abc.Mapping):
            return COPIED_FOR_DELTAS
        if (mapping is not None and mapping.reads_bytes) or not self.of(tensors, mapping).lend:
            return COPIED_FOR_DELTAS
        parts = [part for value in tensors.values() for part in parts_of(value) if part.numel()]
        devices = set(map(_device, parts))
        if len(devices) != 1 or not self._takes_copy(devices.pop(), sum(map(_nbytes, parts)), base):
            return COPIED_FOR_DELTAS
        return COMPARED_BESIDE

    def _takes_copy(self, device: torch.device, nbytes: int, base: str) -> bool:
        return base == "beside" or self._copies.fit_on(device, nbytes)

    def had_no_room(self) -> None:
        """A device had no memory for a copy: versions are copied on the host from now on, unless it is to be beside."""
        self._copies.refused = True

    def of(self, tensors: Tensors | TensorPairs | Loan, mapping: Mapping | None) -> Intake:
        """How these are. What is wrong with them is said by whoever takes them in."""
        if isinstance(tensors, Loan):
            return Intake(lend=True, why="lent, because its bytes are computed when they are sent")
        if comes_in_pairs(tensors):
            return Intake(lend=False, why="registered, because its tensors come one by one")
        if mapping is not None and mapping.cuts_columns:
            return Intake(lend=False, why="registered, because columns of tensors are no runs of memory to be lent")
        values = list(tensors.values()) if isinstance(tensors, abc.Mapping) else []
        own = OWN_KINDS.issuperset(map(type, values))
        parts = cast(list[torch.Tensor], values) if own else [part for value in values for part in parts_of(value)]
        if not all(kind in OWN_KINDS or hasattr(kind, "full_tensor") for kind in set(map(type, parts))):
            return choose_intake(parts)
        if own and self._lends_such(parts):
            return LENT
        if self._lent is not None and not any_nested(parts) and self._lent.is_that_of(parts):
            return LENT
        intake = choose_intake(parts)
        self._lent = SameForm.of(parts) if intake.lend else None
        return intake


class _CopiesOnGpus:
    """Says whether a copy of a version goes on a GPU beside it. Where one went once, those of its size go.

    Attributes:
        refused: a GPU had no memory for one.
    """

    def __init__(self) -> None:
        self.refused = False
        self._known: dict[tuple[torch.device, int], bool] = {}

    def fit_on(self, device: torch.device, nbytes: int) -> bool:
        """Whether it has room for two: one is taken, and whoever trains there needs memory as well."""
        if device.type != "cuda" or self.refused:
            return False
        if not self._known.get((device, nbytes)):
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            self._known[device, nbytes] = torch.cuda.mem_get_info(device)[0] + unused >= 2 * nbytes
        return self._known[device, nbytes]


def choose_intake(parts: Sequence[torch.Tensor]) -> Intake:
    """
    Args:
        parts: what this rank has of the version.
    """
    if not parts:
        return Intake(lend=False, why="registered, because there is nothing to lend")
    if set(map(_layout, parts)) != {torch.strided} or not are_runs_of_bytes(parts):
        return Intake(lend=False, why="registered, because tensors that are not contiguous cannot be lent")
    return LENT
