"""Members of a fleet are asked what they serve, while somebody looks at the page."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import msgspec

from ckpt_transport.config import Config
from ckpt_transport.errors import CkptTransportError
from ckpt_transport.service.fleet import make_fleet
from ckpt_transport.service.query import ask_versions
from ckpt_transport.service.questions import ServedVersion

FRESH_SECONDS = 0.8
"""Answers are shown again for so long: many may look at the same time."""
ASK_SECONDS = 1.0
"""Who does not answer within that time is shown as silent, unless told otherwise."""
FIND_SECONDS = 10.0
"""Engines at endpoints are asked for their sinks no more often than that."""


@dataclass(frozen=True, slots=True)
class Member:
    """A sink or a holder, as it has answered; or an engine whose sinks are not known.

    Attributes:
        place: where it was asked: its address, or its engine's endpoint.
        address: its own; empty where that is not known.
        served: its answer; None when it gave none.
        silence: why not; empty when it did.
    """

    place: str
    address: str = ""
    served: ServedVersion | None = None
    silence: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What a fleet was like at one moment.

    Attributes:
        at: when it was asked, in seconds of the monotonic clock.
        members: in the order in which they were named.
        before: what it was like the last time; None at the first time.
    """

    at: float
    members: tuple[Member, ...]
    before: Look | None = field(default=None, compare=False)


class FleetWatch:
    """Asks a fleet when somebody wants to see it. Any thread may.

    Args:
        sinks: addresses of sinks and holders.
        config: settings.
        engine, endpoints: engines that are driven at their endpoints, and of which kind.
        patience: seconds after which who has not answered is shown as silent.
    """

    def __init__(
        self,
        sinks: Sequence[str],
        config: Config,
        engine: str | None = None,
        endpoints: Sequence[str] = (),
        patience: float = ASK_SECONDS,
    ) -> None:
        self._sinks, self._config, self._patience = tuple(sinks), config, patience
        self._engine, self._endpoints = engine or "", tuple(endpoints)
        self._found: dict[str, tuple[str, ...]] = {}
        """The sinks of each engine that has named them."""
        self._not_found: dict[str, str] = {}
        self._find_again = 0.0
        self._asking = threading.Lock()
        self._last: Look | None = None

    def look(self) -> Look:
        """What the fleet is like now, or was less than a second ago."""
        with self._asking:
            last = self._last
            if last is None or time.monotonic() - last.at > FRESH_SECONDS:
                self._find()
                members = self._ask()
                before = None if last is None else Look(last.at, last.members)
                last = self._last = Look(time.monotonic(), members, before)
            return last

    def _ask(self) -> tuple[Member, ...]:
        places = {address: address for address in self._sinks}
        places |= {address: endpoint for endpoint, sinks in self._found.items() for address in sinks}
        answers = ask_versions(tuple(places), self._config, self._patience) if places else {}
        members = []
        for address, place in places.items():
            answer = answers[address]
            if isinstance(answer, ServedVersion):
                members.append(Member(place, address, answer))
            elif self._found.pop(place, None) is None:
                members.append(Member(place, address, None, str(answer)))
            else:
                self._not_found[place] = str(answer)
        return (*members, *(Member(endpoint, silence=why) for endpoint, why in self._not_found.items()))

    def _find(self) -> None:
        """Have engines say where their sinks are, of which that is not known."""
        unknown = [endpoint for endpoint in self._endpoints if endpoint not in self._found]
        if not unknown or time.monotonic() < self._find_again:
            return
        patience: Mapping[str, float] = {"endpoint_timeout": self._patience, "join_timeout": 2 * self._patience}
        hurried = msgspec.structs.replace(self._config, **patience)
        for endpoint in unknown:
            self._not_found.pop(endpoint, None)
            try:
                with closing(make_fleet(self._engine, [endpoint], hurried, "keep", False)) as fleet:
                    self._found[endpoint] = fleet.sinks()
            except CkptTransportError as error:
                self._not_found[endpoint] = str(error)
        self._find_again = time.monotonic() + FIND_SECONDS
