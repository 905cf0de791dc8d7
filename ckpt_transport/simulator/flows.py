"""Flows share links: whoever is alone on one gets all of it, and others get equal parts, max-min fair.

A flow's rate is what the narrowest of its links leaves it. Where a flow cannot use its part of a link, the others on
that link get what it leaves. Rates change only when a flow begins or ends, so between such moments nothing is computed.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from operator import attrgetter

Path = Mapping["SharedLink", float]
"""The links that a flow crosses, and how many times each of its bytes crosses each."""

SLACK = 1e-9
"""Rounding, as a part of the whole."""
ROUNDED_UP = 1 + SLACK
NO_LIMIT = float("inf")


@dataclass(slots=True, eq=False)
class SharedLink:
    """A link, and the flows that cross it now.

    Attributes:
        name: what it is called; no two links of a world have the same.
        rate: bytes per second that cross it at most.
        wanted: bytes per second that its flows would take if this link were no limit.
        weight: how many times it is crossed by a byte of each of its flows, in all.
        crossed: bytes that have crossed it, of flows that have ended.
        flows: those that cross it now. Where all of them together want less than its rate, it decides nobody's.
    """

    name: Hashable
    rate: float
    wanted: float = 0.0
    weight: float = 0.0
    crossed: float = 0.0
    flows: dict[SharedFlow, None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class SharedFlow:
    """Bytes under way.

    Attributes:
        path: the links that they cross.
        nbytes: how many they are.
        left: bytes that have not arrived, at the time ``since``.
        most: bytes per second if it were alone.
        rate: bytes per second since then.
        turn: counts changes of the rate; what was foretold in an earlier turn is void.
    """

    path: Path
    nbytes: float
    left: float
    most: float
    since: float
    rate: float = 0.0
    turn: int = 0


class Flows:
    """All flows of a world."""

    def __init__(self) -> None:
        self._ends: list[tuple[float, int, int, SharedFlow]] = []
        self._disturbed: dict[SharedFlow, None] = {}
        self._count = 0

    def begin(self, now: float, nbytes: float, path: Path) -> SharedFlow:
        """Begin a flow of so many bytes, more than none, over at least one link."""
        most = min([link.rate / times for link, times in path.items()])
        flow = SharedFlow(path, float(nbytes), float(nbytes), most, now)
        for link, times in path.items():
            link.flows[flow] = None
            link.wanted += times * most
            link.weight += times
        self._disturbed[flow] = None
        return flow

    def end(self, now: float, flow: SharedFlow) -> None:
        """Take a flow away, whether all of its bytes have arrived or not."""
        _advance(now, flow)
        flow.turn += 1
        self._disturbed.pop(flow, None)
        moved, most = flow.nbytes - flow.left, flow.most
        for link, times in flow.path.items():
            shared = link.wanted > link.rate * ROUNDED_UP
            link.crossed += moved * times
            del link.flows[flow]
            if link.flows:
                link.wanted -= times * most
                link.weight -= times
            else:
                link.wanted = link.weight = 0.0
            if shared:
                self._disturbed.update(link.flows)

    def next_end(self, now: float) -> tuple[float, SharedFlow] | None:
        """When the next flow ends, and which; None when there is none. ``now`` is when the last ones began or ended."""
        if self._disturbed:
            self._share(now)
        while self._ends and self._ends[0][1] != self._ends[0][3].turn:
            heapq.heappop(self._ends)
        return (self._ends[0][0], self._ends[0][3]) if self._ends else None

    def _share(self, now: float) -> None:
        """Find the rates of all flows that the last changes may concern."""
        while self._disturbed:
            flow = self._disturbed.popitem()[0]
            for link in flow.path:
                if link.wanted > link.rate * ROUNDED_UP:
                    break
            else:
                self._go_on(now, flow, flow.most)
                continue
            together, links = _together(flow)
            for each in together:
                self._disturbed.pop(each, None)
            for each, rate in _fair_rates(together, links).items():
                self._go_on(now, each, rate)

    def _go_on(self, now: float, flow: SharedFlow, rate: float) -> None:
        """From now on a flow has this rate."""
        if rate != flow.rate:
            _advance(now, flow)
            flow.rate = rate
            flow.turn += 1
            self._count += 1
            heapq.heappush(self._ends, (now + flow.left / rate, flow.turn, self._count, flow))


def _advance(now: float, flow: SharedFlow) -> None:
    left = flow.left - flow.rate * (now - flow.since)
    flow.left = left if left > 0.0 else 0.0
    flow.since = now


def _together(flow: SharedFlow) -> tuple[list[SharedFlow], list[SharedLink]]:
    """The flows whose rates depend on each other, and the links that they share."""
    found, links = {flow: None}, dict[SharedLink, None]()
    waiting = [flow]
    while waiting:
        for link in waiting.pop().path:
            if link.wanted > link.rate * ROUNDED_UP and link not in links:
                links[link] = None
                fresh = [other for other in link.flows if other not in found]
                found.update(dict.fromkeys(fresh))
                waiting += fresh
    return list(found), list(links)


def _fair_rates(flows: Iterable[SharedFlow], links: Sequence[SharedLink]) -> dict[SharedFlow, float]:
    """Raise all rates together; whoever meets a limit stays there, and the others go on."""
    rates: dict[SharedFlow, float] = {}
    left = {link: link.rate for link in links}
    weight = {link: link.weight for link in links}
    rising = sorted(flows, key=_most)
    while rising:
        level, narrowest = NO_LIMIT, None
        for link, rate in left.items():
            part = rate / weight[link]
            if part < level:
                level, narrowest = part, link
        if narrowest is None or rising[0].most <= level:
            settled = list(takewhile(lambda flow: flow.most <= level, rising))  # noqa: B023
        else:
            settled = [flow for flow in narrowest.flows if flow not in rates]
        for flow in settled:
            rates[flow] = rate = min(flow.most, level)
            for link, times in flow.path.items():
                if link in left:
                    left[link] = max(left[link] - times * rate, 0.0)
                    weight[link] -= times
        for link in [link for link in left if weight[link] <= SLACK]:
            del left[link]
        rising = [flow for flow in rising if flow not in rates]
    return rates


_most = attrgetter("most")
