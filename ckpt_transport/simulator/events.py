"""Activities wait for each other, take turns at threads and share links; the clock jumps from one event to the next."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ckpt_transport.checkpoint import Progress
from ckpt_transport.simulator.flows import Flows, Path, SharedFlow

NEVER = float("inf")
TOLD_EVERY = 50_000
"""So many activities end before it is told how far the clock is."""


@dataclass(slots=True, eq=False)
class RankThread:
    """Does one activity after the other, in the order in which they may begin: a thread of one rank.

    Attributes:
        name: what it is called.
        seconds: for which it was busy.
        free: whether it is not.
        queue: what waits for it.
    """

    name: str
    seconds: float = 0.0
    free: bool = True
    queue: deque[Activity] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class Activity:
    """Something that takes time: first a fixed one, and then as long as its bytes need over the links of its path.

    Attributes:
        ranks: who takes part. When one of them dies it never ends.
        seconds: the fixed part.
        nbytes, path: what moves, and over what; no path for nothing.
        thread: who does it, for all of that time; None where nobody is kept busy.
        waits_for: how many activities must end before it may begin.
        then: those that wait for it.
        began, ended: when; NEVER before it has.
    """

    ranks: tuple[int, ...]
    seconds: float = 0.0
    nbytes: float = 0.0
    path: Path | None = None
    thread: RankThread | None = None
    waits_for: int = 0
    then: list[Activity] = field(default_factory=list)
    began: float = NEVER
    ended: float = NEVER

    def after(self, earlier: Activity) -> None:
        """Begin only when ``earlier`` has ended."""
        earlier.then.append(self)
        self.waits_for += 1


class Clock:
    """Runs activities.

    Attributes:
        now: seconds since the beginning.
        events: how many activities have ended.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._flows = Flows()
        self._ready: deque[Activity] = deque()
        self._alarms: list[tuple[float, int, Activity]] = []
        self._under_way: dict[SharedFlow, Activity] = {}
        self._count = 0
        self._dead: set[int] = set()

    def run(
        self,
        activities: Sequence[Activity],
        deaths: Sequence[tuple[float, int]] = (),
        progress: Progress | None = None,
    ) -> None:
        """Run all activities, until nothing can happen any more.

        Args:
            activities: each after those that it waits for.
            deaths: when which rank dies.
            progress: told how many have ended, of how many.
        """
        self._ready.extend(activity for activity in activities if not activity.waits_for)
        deadly, told_at = deque(sorted(deaths)), TOLD_EVERY
        while True:
            if progress is not None and self.events >= told_at:
                progress(self.events, len(activities))
                told_at = self.events + TOLD_EVERY
            self._begin_ready()
            ending = self._flows.next_end(self.now)
            alarm = self._alarms[0][0] if self._alarms else NEVER
            arrival = NEVER if ending is None else ending[0]
            death = deadly[0][0] if deadly else NEVER
            first = alarm if alarm <= arrival else arrival
            if first == NEVER:
                return
            moment = death if death <= first else first
            if moment > self.now:
                self.now = moment
            if death <= first:
                self._kill(deadly.popleft()[1])
            elif alarm <= arrival:
                self._fixed_part_over(heapq.heappop(self._alarms)[2])
            elif ending is not None:
                self._flows.end(self.now, ending[1])
                self._end(self._under_way.pop(ending[1]))

    def _begin_ready(self) -> None:
        while self._ready:
            activity = self._ready.popleft()
            thread = activity.thread
            if thread is None or thread.free:
                self._begin(activity)
            else:
                thread.queue.append(activity)

    def _begin(self, activity: Activity) -> None:
        if self._dead and not self._dead.isdisjoint(activity.ranks):
            return
        activity.began = self.now
        if activity.thread is not None:
            activity.thread.free = False
        if activity.seconds:
            self._count += 1
            heapq.heappush(self._alarms, (self.now + activity.seconds, self._count, activity))
        else:
            self._move(activity)

    def _fixed_part_over(self, activity: Activity) -> None:
        if not self._dead or self._dead.isdisjoint(activity.ranks):
            self._move(activity)

    def _move(self, activity: Activity) -> None:
        if activity.path and activity.nbytes:
            flow = self._flows.begin(self.now, activity.nbytes, activity.path)
            self._under_way[flow] = activity
        else:
            self._end(activity)

    def _end(self, activity: Activity) -> None:
        activity.ended = self.now
        self.events += 1
        thread = activity.thread
        if thread is not None:
            thread.seconds += self.now - activity.began
            thread.free = True
            if thread.queue:
                self._ready.appendleft(thread.queue.popleft())
        for later in activity.then:
            later.waits_for -= 1
            if not later.waits_for:
                self._ready.append(later)

    def _kill(self, rank: int) -> None:
        """What the rank takes part in stands still from now on."""
        self._dead.add(rank)
        for flow, activity in list(self._under_way.items()):
            if rank in activity.ranks:
                self._flows.end(self.now, flow)
                del self._under_way[flow]
