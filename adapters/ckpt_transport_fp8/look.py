"""What can be seen of a tensor without its elements."""

from __future__ import annotations

from operator import attrgetter
from typing import NamedTuple

import torch


class Look(NamedTuple):
    """All that decides, with its name, what becomes of a tensor."""

    dtype: torch.dtype
    shape: torch.Size
    device: torch.device
    layout: torch.layout


look_at = attrgetter(*Look._fields)
"""The look of a tensor, as a plain tuple."""
