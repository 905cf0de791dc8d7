"""What members have answered becomes what the page shows."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckpt_transport.dashboard.fleet_watch import Look, Member
from ckpt_transport.execution import Arrival
from ckpt_transport.service.questions import ServedVersion
from ckpt_transport.sizes import duration, size


@dataclass(frozen=True, slots=True)
class MemberRow:
    """One member, in words.

    Attributes:
        name, place: what people call it, and where it was asked.
        version, previous: what it serves, and what it can go back to.
        since: when it began to, in seconds since the epoch; 0 when that is not known.
        mood: ``good``, ``busy`` or ``bad``.
        state: in a word or two.
        detail: what there is to say of that.
    """

    name: str
    place: str
    version: str
    previous: str
    since: float
    mood: str
    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LinkRow:
    """What comes over one link.

    Attributes:
        sender, receiver, transport: of the link.
        done, nbytes: bytes that have come, and bytes in all.
        rate: bytes per second since the fleet was asked before.
    """

    sender: str
    receiver: str
    transport: str
    done: int
    nbytes: int
    rate: float

    @property
    def percent(self) -> int:
        return 100 * self.done // self.nbytes if self.nbytes else 100


@dataclass(frozen=True, slots=True)
class RunningUpdate:
    """An update that members say is under way.

    Attributes:
        version: the one that it brings.
        steps: how far members are: each state, and how many are there.
        links: what has come over each.
    """

    version: str
    steps: tuple[tuple[str, int], ...]
    links: tuple[LinkRow, ...]

    @property
    def percent(self) -> int:
        nbytes = sum(link.nbytes for link in self.links)
        return 100 * sum(link.done for link in self.links) // nbytes if nbytes else 0


def member_rows(look: Look) -> list[MemberRow]:
    """All members, as they were named."""
    return [_row(member) for member in look.members]


def _row(member: Member) -> MemberRow:
    served = member.served
    if served is None:
        return MemberRow("", member.place, "", "", 0.0, "bad", "silent", member.silence)
    if served.tainted:
        mood, state, detail = "bad", "tainted", served.tainted
    elif served.in_doubt:
        mood, state, detail = "bad", "in doubt", served.in_doubt
    elif served.stuck:
        mood, state, detail = "bad", "takes no update", served.stuck
    elif served.update:
        mood, state, detail = "busy", f"gets {served.update}", step(served)
    else:
        mood, state, detail = "good", "serves", served.warm_up
    return MemberRow(served.label, member.place, served.version, served.previous, served.since, mood, state, detail)


def step(served: ServedVersion) -> str:
    """How far a member is in an update, in words."""
    come = sum(arrival.done for arrival in served.arrivals)
    return "bytes come in" if 0 < come < sum(arrival.nbytes for arrival in served.arrivals) else served.state


def versions(look: Look) -> list[tuple[str, int]]:
    """The versions that members serve, and how many serve each, most first."""
    served: defaultdict[str, int] = defaultdict(int)
    for member in look.members:
        if member.served is not None:
            served[member.served.version] += 1
    return sorted(served.items(), key=lambda each: (-each[1], each[0]))


def running(look: Look) -> list[RunningUpdate]:
    """The updates that are under way; more than one where members of several fleets are shown."""
    by_version: defaultdict[str, list[Member]] = defaultdict(list)
    for member in look.members:
        if member.served is not None and member.served.update:
            by_version[member.served.update].append(member)
    return [
        RunningUpdate(version, _steps(members), tuple(link for member in members for link in _links(member, look)))
        for version, members in by_version.items()
    ]


def _steps(members: Sequence[Member]) -> tuple[tuple[str, int], ...]:
    states: defaultdict[str, int] = defaultdict(int)
    for member in members:
        if member.served is not None:
            states[step(member.served)] += 1
    return tuple(states.items())


def _links(member: Member, look: Look) -> Iterator[LinkRow]:
    served = member.served
    assert served is not None
    for arrival in served.arrivals:
        rate = max(arrival.done - _before(member, arrival, look), 0) / _seconds(look)
        yield LinkRow(arrival.sender, served.label, arrival.transport, arrival.done, arrival.nbytes, rate)


def _before(member: Member, arrival: Arrival, look: Look) -> int:
    """How much had come over that link when the fleet was asked before."""
    assert member.served is not None
    for other in () if look.before is None else look.before.members:
        if other.served is not None and (other.address, other.served.update) == (member.address, member.served.update):
            for earlier in other.served.arrivals:
                if (earlier.sender, earlier.transport) == (arrival.sender, arrival.transport):
                    return earlier.done
    return 0


def _seconds(look: Look) -> float:
    return float("inf") if look.before is None else max(look.at - look.before.at, 1e-3)


def can_go_back(look: Look) -> str:
    """The version that all sinks can go back to; empty for none, and while an update is under way."""
    if running(look):
        return ""
    kept = {member.served.previous if member.served is not None else "" for member in look.members}
    return kept.pop() if len(kept) == 1 else ""


# -- words ------------------------------------------------------------------------------------------------------------


def age(value: float) -> str:
    """For how long something has been so, as ``5 s``, ``12 min``, ``3 h``, ``2 d``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= 2 * length:
            return f"{value // length:.0f} {unit}"
    return f"{max(value, 0):.0f} s"


def clock(at: float) -> str:
    """A moment, by the clock of this host."""
    return datetime.datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def iso(at: float) -> str:
    """A moment, for programs."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat(timespec="seconds")


FILTERS = {"seconds": duration, "age": age, "clock": clock, "iso": iso, "size": size}
