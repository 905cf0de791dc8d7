"""Of links that the same flows cross, the narrowest decides. A run counts with that, and the others carry what it does.

A broadcast down a line of hosts crosses some links of each; nearly all of them are crossed by it alone, or by the same
few broadcasts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ckpt_transport.simulator.events import Activity
from ckpt_transport.simulator.flows import Path, SharedLink


class Bottlenecks:
    """Has activities move over bottlenecks only.

    Args:
        activities: all of a run; their paths become shorter.
    """

    def __init__(self, activities: Iterable[Activity]) -> None:
        moving = [activity for activity in activities if activity.path]
        paths: dict[int, Path] = {id(activity.path): activity.path for activity in moving if activity.path}
        users: defaultdict[SharedLink, list[tuple[int, float]]] = defaultdict(list)
        for number, path in paths.items():
            for link, times in path.items():
                users[link].append((number, times))
        narrowest: dict[tuple[tuple[int, float], ...], SharedLink] = {}
        for link, used in users.items():
            found = narrowest.setdefault(tuple(used), link)
            if link.rate < found.rate:
                narrowest[tuple(used)] = link
        self._deciding = {link: narrowest[tuple(used)] for link, used in users.items()}
        shorter = {
            number: {link: times for link, times in path.items() if self._deciding[link] is link}
            for number, path in paths.items()
        }
        for activity in moving:
            activity.path = shorter[id(activity.path)]

    def spread(self) -> None:
        """The run is over: what has crossed a bottleneck has crossed the links that it stands for, too."""
        for link, deciding in self._deciding.items():
            link.crossed = deciding.crossed
