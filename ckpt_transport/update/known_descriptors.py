"""What members lend is described once. Where nothing of it changes, later updates only name it.

Rank 0 gives a name to the descriptors of all ranks when it tells them. Its next proposal of the same plan to the same
members, who have kept their routes, carries that name alone. A member that knows it, and lends what it has lent, is
connected by that.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

RankDescriptors = Mapping[int, list[bytes]]
"""Descriptors of what one rank lends, by number of the route."""
ByRoute = Mapping[int, Mapping[int, list[bytes]]]
"""The same of all ranks: by route, then by rank."""


@dataclass(slots=True)
class KnownDescriptors:
    """What a member was told last.

    Attributes:
        name: of all that ranks lend; empty where it has none.
        own: what this member has lent.
        by_route: what all have lent.
    """

    name: str = ""
    own: RankDescriptors = field(default_factory=dict)
    by_route: ByRoute = field(default_factory=dict)

    def named(self, name: str, own: RankDescriptors) -> ByRoute | None:
        """What ranks lend by that name; None where that is not known, or this member lends something else by now."""
        return self.by_route if name and (name, own) == (self.name, self.own) else None


@dataclass(slots=True)
class ToldDescriptors:
    """What rank 0 has told the members of its last update, who are told only what has changed.

    Attributes:
        name: of all that ranks have lent.
        by_rank: what each has lent.
    """

    name: str = ""
    by_rank: Mapping[int, RankDescriptors] = field(default_factory=dict)
    _plan: Hashable = None

    def name_for(self, plan: Hashable) -> str:
        """The name of what members have been told for a plan and its members; empty where that was another plan."""
        return self.name if plan == self._plan else ""

    def told(self, name: str, plan: Hashable, by_rank: Mapping[int, RankDescriptors]) -> None:
        """All members of a plan know by that name what each of them lends."""
        self.name, self._plan, self.by_rank = name, plan, dict(by_rank)


def new_name() -> str:
    """A name that no other descriptors have."""
    return secrets.token_hex(8)


def by_route(lent: Mapping[int, RankDescriptors]) -> dict[int, dict[int, list[bytes]]]:
    """What ranks lend, by route and rank; it is given by rank and route."""
    found: defaultdict[int, dict[int, list[bytes]]] = defaultdict(dict)
    for rank, descriptors in lent.items():
        for route, described in descriptors.items():
            found[route][rank] = described
    return dict(found)
