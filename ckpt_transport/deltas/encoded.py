"""What an encoder makes of two versions of a range."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ckpt_transport.planning import DeltaForm


@dataclass(frozen=True)
class Encoded:
    """What differs in a range.

    Attributes:
        form: how it is encoded.
        count: how many elements are carried: those that differ, or all of a range that is carried whole.
        raw: the bytes, on the device of what was compared; nothing where nothing differs.
    """

    form: DeltaForm
    count: int
    raw: torch.Tensor

    @classmethod
    def nothing(cls, device: torch.device) -> Encoded:
        """Of a range in which nothing differs."""
        return cls(DeltaForm.LIST, 0, torch.empty(0, dtype=torch.uint8, device=device))
