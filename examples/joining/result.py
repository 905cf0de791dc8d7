"""What the demonstration of joining found."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from examples.llama.checks import Comparison
from examples.shared.phases import Summary

VERSION = "step-42"


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """One engine that has joined.

    Attributes:
        asked, transports: the transport that was asked for, and those that were used.
        seconds: from the call until it served.
        sent: bytes that each holder has sent.
        identical: it gives the tokens that the fleet gives.
        comparison: of its parameters with the files.
    """

    asked: str
    transports: tuple[str, ...]
    seconds: float
    sent: tuple[int, ...]
    identical: bool
    comparison: Comparison

    def problems(self) -> Iterator[str]:
        """What did not hold."""
        if not self.identical:
            yield f"the engine that joined over {self.asked} gives other tokens than the fleet"
        for problem in self.comparison.problems():
            yield f"of the engine that joined over {self.asked}, {problem}"
        if set(self.transports) - set(self.asked.split("+")):
            yield f"{self.asked} was asked for, and {', '.join(self.transports)} was used"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the demonstration found.

    Attributes:
        problems: what was not as promised.
        verdict: what is to be said when everything was.
        joined: the engines that have joined.
        requests: of the fleet, by when they were under way.
        versions: that each worker of the fleet serves in the end.
    """

    problems: tuple[str, ...]
    verdict: str = f"All engines serve {VERSION} bit by bit; the fleet was not paused, and no request failed."
    joined: tuple[Joined, ...]
    requests: dict[str, Summary]
    versions: tuple[str, ...]
