"""The activities of a plan: what every rank does of it, each after what it waits for.

A plan already says what waits for what, slots included. Added is what its words do not cover: a rank posts the
transfers of a route in their order and not too far ahead, its fills and its applies run one after the other, a transfer
begins when those who take part have posted it, and what goes from one rank to another on a route arrives in that order.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from ckpt_transport.execution.transfers import AHEAD
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import Bucket, Plan, StageKind
from ckpt_transport.planning.broadcast_trees import ON_GPUS
from ckpt_transport.planning.values.plan import Leg, Route, Stage
from ckpt_transport.planning.values.topology import EVERYTHING
from ckpt_transport.simulator.events import Activity, RankThread
from ckpt_transport.simulator.flows import Path
from ckpt_transport.simulator.wires import Location, Wires
from ckpt_transport.simulator.world import SimulatedWorld
from ckpt_transport.transports.interface import FanOut, Traits


class StageActivities(NamedTuple):
    """A stage: what begins first on each of its ranks, and what must end before it has ended there."""

    kind: StageKind
    bucket: int
    began: dict[int, Activity]
    ends: dict[int, Activity]


class Activities:
    """Makes the activities of a plan in a world.

    Attributes:
        all: in the order of the plan.
        threads: of ranks.
        stages: what begins first, and what ends last, on each rank of each stage.
        applies: every apply.
    """

    def __init__(self, plan: Plan, world: SimulatedWorld, wires: Wires) -> None:
        self._plan, self._world, self._wires, self._costs = plan, world, wires, world.cluster.costs
        self.all: list[Activity] = []
        self.threads: dict[tuple[str, int], RankThread] = {}
        self.stages: list[StageActivities] = []
        self.applies: list[Activity] = []
        self._first_hop: dict[int, int] = {}
        stages = list(plan.stages)
        for stage in stages:
            if stage.kind is StageKind.TRANSFER:
                self._first_hop.setdefault(stage.bucket, stage.hop)
        self._lies: dict[int, dict[int, Location]] = {}
        self._in_turn: dict[tuple[str, int], Activity] = {}
        self._posted: dict[tuple[int, int], Activity] = {}
        self._behind: defaultdict[tuple[int, int], list[tuple[int, Activity]]] = defaultdict(list)
        self._on_connection: dict[tuple[int, int, int], Activity] = {}
        self._under_way: defaultdict[tuple[int, int], deque[tuple[int, Activity]]] = defaultdict(deque)
        self._arrived_before: dict[tuple[int, int], Activity | None] = {}
        self._readers: defaultdict[tuple[int, int], list[Activity]] = defaultdict(list)
        self._applied: dict[tuple[int, int], Activity] = {}
        self._copies: dict[tuple[Location, Location, float], Path] = {}
        self._sent: dict[tuple[str, int, int], Path] = {}
        self._pipelined: dict[int, Path] = {}
        for number, stage in enumerate(stages):
            self.stages.append(StageActivities(stage.kind, stage.bucket, {}, {}))
            self._make(number, stage)

    def _make(self, number: int, stage: Stage) -> None:
        bucket = self._plan.buckets[stage.bucket]
        match stage.kind:
            case StageKind.FILL:
                self._fill(number, stage, bucket)
            case StageKind.TRANSFER:
                if stage.bucket not in self._lies:
                    self._lies[stage.bucket] = {self._plan.owner(bucket): self._origin(bucket)}
                for leg in self._plan.hops[stage.hop].legs:
                    self._transfer(number, stage, bucket, leg)
            case StageKind.APPLY:
                self._apply(number, stage, bucket)

    # -- fills and applies ----------------------------------------------------------------------------------------

    def _fill(self, number: int, stage: Stage, bucket: Bucket) -> None:
        owner = self._plan.owner(bucket)
        slot = self._fill_slot(owner, self._plan.hops[self._first_hop[stage.bucket]].legs)
        self._lies[stage.bucket] = {owner: slot}
        path = self._copied(self._origin(bucket), slot)
        fill = self._activity((owner,), 0.0, bucket.nbytes, path, self._thread("fills of", owner))
        self._after_stages(fill, stage, owner)
        self._take_turn("fill", owner, fill)
        self.stages[number].ends[owner] = self.stages[number].began[owner] = fill

    def _apply(self, number: int, stage: Stage, bucket: Bucket) -> None:
        lies = self._lies.pop(stage.bucket)
        _, _, began, ends = self.stages[number]
        for rank in self._plan.receiver_sets[bucket.receiver_set]:
            source, target = lies[rank], self._wires.home(rank)
            path = self._copied(source, target, 1.0 if target.device and not source.device else self._takes[rank])
            seconds = self._scaled(rank, self._costs.apply + self._costs.piece * len(bucket.pieces))
            apply = self._activity((rank,), seconds, bucket.nbytes, path, self._thread("applies of", rank))
            self._after_stages(apply, stage, rank)
            self._take_turn("apply", rank, apply)
            ends[rank] = began[rank] = self._applied[stage.bucket, rank] = apply
            self.applies.append(apply)
            for reader in self._readers.pop((stage.bucket, rank), ()):
                reader.after(apply)

    @cached_property
    def _takes(self) -> dict[int, float]:
        """How much of what it is brought each sink takes in."""
        topology, payloads = self._plan.topology, [0] * len(self._plan.receiver_sets)
        for bucket in self._plan.buckets:
            payloads[bucket.receiver_set] += bucket.payload
        brought = dict.fromkeys(topology.sinks, 0)
        for receiver_set, nbytes in zip(self._plan.receiver_sets, payloads, strict=True):
            brought.update({rank: brought[rank] + nbytes for rank in receiver_set})
        needs = [share.nbytes for share in topology.shares]
        return {
            rank: 1.0 if share == EVERYTHING or not brought[rank] else min(needs[share] / brought[rank], 1.0)
            for rank in topology.sinks
            for share in [topology.participants[rank].share]
        }

    # -- transfers ------------------------------------------------------------------------------------------------

    def _transfer(self, number: int, stage: Stage, bucket: Bucket, leg: Leg) -> None:
        route = self._plan.routes[leg.route]
        traits = self._world.traits[route.transport]
        members = (leg.sender, *leg.receivers)
        posts = {rank: self._post(stage, leg, rank, traits, rank == leg.sender) for rank in members}
        arrived = dict(self._moves(stage, bucket, leg, traits, posts))
        lies = self._lies[stage.bucket]
        for rank in leg.receivers:
            lies[rank] = lies[leg.sender] if traits.maps_memory else self._slot(rank, traits)
        passed_on = self._passed_on(leg, route, arrived)
        for rank in (*leg.receivers, leg.sender):
            end = arrived.get(rank, posts[rank])
            if rank in passed_on:
                end = self._when_all((rank,), [end, *passed_on[rank]])
            if route.maps_memory and rank == leg.sender:
                end = self._given_back(stage, leg, end)
            self._ends(number, rank, posts[rank], end)
            self._behind[leg.route, rank].append((stage.bucket, end))

    def _post(self, stage: Stage, leg: Leg, rank: int, traits: Traits, sends: bool) -> Activity:
        """A member posts the transfer, when it has posted those before and what the plan says is done there."""
        costs = self._costs.bucket + (self._costs.receiver * len(leg.receivers) if sends else 0.0)
        post = self._activity((rank,), self._scaled(rank, costs), 0, None, self._thread("transfers of", rank))
        key = leg.route, rank
        before = self._posted.get(key)
        if before is not None:
            post.after(before)
        self._posted[key] = post
        behind = self._behind[key]
        if len(behind) >= AHEAD and (traits.on_device or not sends):
            earlier, end = behind[-AHEAD]
            post.after(end if sends else self._applied.get((earlier, rank), end))
        self._after_stages(post, stage, rank)
        return post

    def _moves(
        self, stage: Stage, bucket: Bucket, leg: Leg, traits: Traits, posts: dict[int, Activity]
    ) -> Iterator[tuple[int, Activity]]:
        """Each receiver, and what ends when it has the bytes."""
        latency = self._costs.network
        if traits.maps_memory:
            for rank in leg.receivers:
                look = self._activity((leg.sender, rank))
                look.after(posts[leg.sender])
                look.after(posts[rank])
                yield rank, look
        elif traits.fan_out is FanOut.CONSTANT:
            path = self._pipelined.get(leg.route)
            if path is None:
                path = self._pipelined[leg.route] = self._wires.pipelined(traits, (leg.sender, *leg.receivers))
            everybody = self._activity((leg.sender, *leg.receivers), latency, bucket.nbytes, path)
            for post in posts.values():
                everybody.after(post)
            self._on_wire((leg.route, -1, -1), everybody)
            yield from ((rank, everybody) for rank in leg.receivers)
        else:
            arrived: dict[int, Activity] = {}
            turnaround = self._turnaround(leg)
            for rank, parent in _parents(leg, traits).items():
                path = self._sent.get((self._plan.routes[leg.route].transport, parent, rank))
                if path is None:
                    path = self._wires.sent(traits, parent, rank)
                    self._sent[self._plan.routes[leg.route].transport, parent, rank] = path
                tail = self._room(leg.route, parent, rank) % bucket.nbytes
                move = self._activity((parent, rank), latency, bucket.nbytes - tail, path)
                move.after(arrived.get(parent, posts[parent]))
                move.after(self._ready(rank, posts[rank], turnaround))
                for end in (parent, rank):
                    behind = self._behind[leg.route, end]
                    if 0 < traits.at_once <= len(behind):
                        move.after(behind[-traits.at_once][1])
                self._on_wire((leg.route, parent, rank), move)
                self._under_way[leg.route, rank].append((bucket.nbytes - tail, move))
                if tail:
                    move = self._activity((parent, rank), 0.0, tail, path)
                    self._on_wire((leg.route, parent, rank), move)
                    self._under_way[leg.route, rank].append((tail, move))
                arrived[rank] = move
            yield from arrived.items()

    def _room(self, route: int, parent: int, rank: int) -> int:
        """Bytes that a connection takes in before they arrive."""
        if self._world.places[parent][0] == self._world.places[rank][0]:
            return 0
        return self._world.cluster.rates_of(self._plan.routes[route].transport).buffered

    def _turnaround(self, leg: Leg) -> float:
        return self._world.cluster.rates_of(self._plan.routes[leg.route].transport).turnaround

    def _ready(self, rank: int, post: Activity, turnaround: float) -> Activity:
        """A receiver has posted a transfer, and its sender knows."""
        if not turnaround:
            return post
        ready = self._activity((rank,), turnaround)
        ready.after(post)
        return ready

    def _on_wire(self, connection: tuple[int, int, int], move: Activity) -> None:
        """What goes over one connection, or is one collective after another, keeps its order."""
        before = self._on_connection.get(connection)
        if before is not None:
            move.after(before)
        self._on_connection[connection] = move

    def _passed_on(self, leg: Leg, route: Route, arrived: dict[int, Activity]) -> defaultdict[int, list[Activity]]:
        """Of each member, what must end before it has sent the bytes to all that it sends them to."""
        found = defaultdict[int, list[Activity]](list)
        traits = self._world.traits[route.transport]
        parents, arrives_whole = _parents(leg, traits), traits.maps_memory or traits.fan_out is FanOut.CONSTANT
        for rank, end in arrived.items():
            taken_in = end if arrives_whole else self._taken_in(leg.route, parents[rank], rank)
            if taken_in is not None:
                found[parents[rank]].append(taken_in)
        return found

    def _given_back(self, stage: Stage, leg: Leg, sent: Activity) -> Activity:
        """What ends when the sender may overwrite what is mapped, which is read until it has been applied."""
        given_back = self._activity((leg.sender,), self._turnaround(leg))
        given_back.after(sent)
        for rank in leg.receivers:
            self._readers[stage.bucket, rank].append(given_back)
        return given_back

    def _taken_in(self, route: int, parent: int, rank: int) -> Activity | None:
        """What must have arrived at a receiver before a connection has taken in all of a bucket; None for nothing.

        Buffers hold the last bytes that were sent, as many as fit: whole buckets, and the tail of the one before.
        """
        room, under_way = self._room(route, parent, rank), self._under_way[route, rank]
        held = sum(size for size, _ in under_way)
        last = None
        while held > room:
            size, last = under_way.popleft()
            held -= size
        self._arrived_before[route, rank] = last or self._arrived_before.get((route, rank))
        return self._arrived_before[route, rank]

    def _ends(self, number: int, rank: int, began: Activity, end: Activity) -> None:
        """A rank that receives in one leg and sends in another has done the stage when it has done both."""
        self.stages[number].began.setdefault(rank, began)
        other = self.stages[number].ends.get(rank)
        if other is not None:
            end = self._when_all((rank,), [other, end])
        self.stages[number].ends[rank] = end

    # -- where bytes lie ------------------------------------------------------------------------------------------

    def _origin(self, bucket: Bucket) -> Location:
        extent = self._plan.manifest.extents[bucket.extent]
        if extent.device or extent.kind not in (MemoryKind.CUDA, MemoryKind.SCATTERED):
            return Location(self._world.places[extent.owner][0], extent.device)
        return self._wires.home(extent.owner)

    def _slot(self, rank: int, traits: Traits) -> Location:
        home = self._wires.home(rank)
        return home if MemoryKind.CUDA in traits.sends_from else Location(home.host)

    def _fill_slot(self, owner: int, legs: Sequence[Leg]) -> Location:
        for leg in legs:
            route = self._plan.routes[leg.route]
            if self._world.traits[route.transport].reach in ON_GPUS:
                return Location(self._world.places[owner][0], route.devices[0])
        return self._slot(owner, self._world.traits[self._plan.routes[legs[0].route].transport])

    def _copied(self, source: Location, target: Location, times: float = 1.0) -> Path:
        key = source, target, times
        path = self._copies.get(key)
        if path is None:
            path = self._copies[key] = self._wires.copied(source, target, times)
        return path

    # -- order ----------------------------------------------------------------------------------------------------

    def _after_stages(self, activity: Activity, stage: Stage, rank: int) -> None:
        for earlier in stage.after:
            end = self.stages[earlier].ends.get(rank)
            if end is not None:
                activity.after(end)

    def _take_turn(self, what: str, rank: int, activity: Activity) -> None:
        before = self._in_turn.get((what, rank))
        if before is not None:
            activity.after(before)
        self._in_turn[what, rank] = activity

    def _thread(self, what: str, rank: int) -> RankThread:
        thread = self.threads.get((what, rank))
        if thread is None:
            thread = self.threads[what, rank] = RankThread(f"{what} rank {rank}")
        return thread

    def _when_all(self, ranks: tuple[int, ...], earlier: Sequence[Activity]) -> Activity:
        """What ends when all of these have."""
        end = self._activity(ranks)
        for each in earlier:
            end.after(each)
        return end

    def _scaled(self, rank: int, seconds: float) -> float:
        return seconds * self._factors[rank]

    @cached_property
    def _factors(self) -> list[float]:
        """How many times as long as others each rank's host takes."""
        return [self._world.cluster.factor(host) for host, *_ in self._world.places]

    def _activity(
        self,
        ranks: tuple[int, ...],
        seconds: float = 0.0,
        nbytes: float = 0,
        path: Path | None = None,
        thread: RankThread | None = None,
    ) -> Activity:
        activity = Activity(ranks, seconds, nbytes, path, thread)
        self.all.append(activity)
        return activity


def _parents(leg: Leg, traits: Traits) -> dict[int, int]:
    """From whom each receiver gets the bytes.

    In a tree those that have them double with each step, as in gloo: counted round from the sender, member 0 sends to
    1, these to 2 and 3, and these four to 4, 5, 6 and 7.
    """
    if traits.fan_out is not FanOut.TREE:
        return dict.fromkeys(leg.receivers, leg.sender)
    members = (leg.sender, *sorted(leg.receivers, key=lambda rank: (rank < leg.sender, rank)))
    return {members[at]: members[at - (1 << at.bit_length() - 1)] for at in range(1, len(members))}
