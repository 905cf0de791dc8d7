"""Where the elements of deltas go is found once, and serves those that follow."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ckpt_transport.deltas import ElementMap
from ckpt_transport.engine import ServedElements, share_of_served
from ckpt_transport.planning import Delta, PlacedTensor, Share


class ElementMaps:
    """Keeps the maps of the last delta, which serve the next one as long as nothing but addresses changes."""

    def __init__(self) -> None:
        self._known: list[tuple[object, tuple[PlacedTensor, ...], ElementMap]] = []
        self._share: tuple[object, Share | None] = None, None

    def of(self, deltas: Sequence[Delta], elements: ServedElements, device: torch.device) -> list[ElementMap]:
        """A map for each source's tensors.

        Raises:
            DeltaRefusedError: elements cannot be followed to where they are served; names the tensor.
        """
        known, self._known = self._known, []
        for number, delta in enumerate(deltas):
            before = known[number] if number < len(known) else (None, (), None)
            if before[0] is elements.copies and before[1] == delta.tensors and before[2] is not None:
                found = before[2]
            else:
                found = ElementMap(delta.tensors, elements.specs, elements.copies, device)
            self._known.append((elements.copies, delta.tensors, found))
        return [each for _, _, each in self._known]

    def share(self, elements: ServedElements) -> Share | None:
        """Which bytes of a version are served; None for all."""
        if self._share[0] is not elements.copies:
            self._share = elements.copies, share_of_served(elements)
        return self._share[1]
