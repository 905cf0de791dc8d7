"""A prediction says how long a plan will take, and what it waits for."""

from __future__ import annotations

import msgspec


class Prediction(msgspec.Struct, frozen=True, array_like=True):
    """How long it takes from the first fill to the last apply, as the cost model counts.

    Attributes:
        seconds: in all.
        link: the link that is busy longest, in words.
        busy: seconds for which it is.
        nbytes: what crosses it.
        measured: whether its rate was measured, and not assumed.
    """

    seconds: float
    link: str
    busy: float
    nbytes: float
    measured: bool

    @property
    def rate(self) -> float:
        """Bytes per second that the link is counted on; 0 where nothing crosses it."""
        return self.nbytes / self.busy if self.busy else 0.0


NOTHING_MOVES = Prediction(0.0, "no link", 0.0, 0.0, measured=True)
"""Of a plan in which no byte moves."""
