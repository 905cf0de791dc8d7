"""What is asked for in an update of a parameter server."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ckpt_transport.service.base import WHOLE, BroughtPart


class Asked(NamedTuple):
    """Says which version is to be brought, and where to.

    Attributes:
        version: its name.
        sinks: chooses those that are to get it; only rank 0 needs to know.
        part: which tensors.
    """

    version: str
    sinks: Callable[[], tuple[str, ...]]
    part: BroughtPart = WHOLE
