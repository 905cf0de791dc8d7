"""A participant keeps routes open between updates, and the memory that belongs to them."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from ckpt_transport.control import Mailbox, RouteControl
from ckpt_transport.execution import Lent, LentKind, RankSchedule, RouteAttachment
from ckpt_transport.memory import Backing, Buffer, Lendable, MemoryKind
from ckpt_transport.planning import Plan, RingUse
from ckpt_transport.planning.values.plan import Route
from ckpt_transport.transports.interface import Descriptor, Group, Transport
from ckpt_transport.transports.operations import MemoryRegion
from ckpt_transport.update import messages as m
from ckpt_transport.update.endpoints import opened
from ckpt_transport.update.forks import leave_to_parent
from ckpt_transport.update.known_descriptors import ByRoute, KnownDescriptors, ToldDescriptors

LoadTransport = Callable[[str], Transport]
Watch = Callable[[], None]
"""Called while something is waited for; raises when the update has failed."""


@dataclass(slots=True)
class OpenRoute:
    """Holds one open route: its attachment, its control channel, and every region registered with it."""

    attachment: RouteAttachment
    control: RouteControl
    regions: dict[int, tuple[Lendable, MemoryRegion]] = field(default_factory=dict)

    def region(self, buffer: Lendable) -> MemoryRegion:
        """The region of ``buffer``, registered now if it is not yet."""
        if id(buffer) not in self.regions:
            self.regions[id(buffer)] = buffer, self.attachment.endpoint.register(buffer)
        return self.regions[id(buffer)][1]

    def keep_only(self, buffers: Sequence[Lendable]) -> None:
        """Undo the registration of every other buffer, and keep nothing of it."""
        kept = {id(buffer) for buffer in buffers}
        closed = [self.regions.pop(key)[1] for key in list(self.regions) if key not in kept]
        for region in closed:
            region.close()
        self.attachment.lent = [region for region in self.attachment.lent if region not in closed]


@dataclass(slots=True)
class RouteNames:
    """Knows the names of routes that every member has kept, so that the next update can use them again.

    Attributes:
        told: what members were told that each of them lends.
    """

    told: ToldDescriptors = field(default_factory=ToldDescriptors)
    _known: dict[tuple[str, tuple[str, ...], int], str] = field(default_factory=dict)

    def names(self, routes: Sequence[Route], joins: Sequence[m.Join]) -> tuple[str, ...]:
        """A name for every route of a plan: a kept one where all its members have it, else a new one."""
        found: list[str] = []
        alike: Counter[tuple[str, tuple[str, ...]]] = Counter()
        for route in routes:
            members = [joins[rank] for rank in route.ranks]
            ends = route.transport, tuple(member.uid for member in members)
            key = (*ends, alike[ends])
            alike[ends] += 1
            kept = self._known.get(key, "")
            if not kept or not all(kept in member.routes for member in members):
                kept = self._known[key] = f"{route.transport}-{secrets.token_hex(4)}"
            found.append(kept)
        return tuple(found)


class RouteTable:
    """Keeps endpoints, regions and rings from one update to the next, as long as its routes are kept."""

    def __init__(self, mailbox: Mailbox, load_transport: LoadTransport) -> None:
        self._mailbox, self._load_transport = mailbox, load_transport
        self._open: dict[str, OpenRoute] = {}
        self._expected: set[str] = set()
        self._fellows: set[str] = set()
        """Mailboxes of those who took part in the last update."""
        self._rings: dict[tuple[str, RingUse, int], Buffer] = {}
        self.round = ExitStack()
        """What ends with the plan that the routes are open for: when another one opens them, or when they close."""
        self._lent: dict[int, list[Descriptor]] = {}
        self._known = KnownDescriptors()
        leave_to_parent(self)

    @property
    def names(self) -> tuple[str, ...]:
        """The routes that are open."""
        return tuple(self._open)

    @property
    def shared_slots(self) -> int:
        """Bytes of shared memory that slots have."""
        return sum(ring.nbytes for ring in self._rings.values() if ring.kind is MemoryKind.SHARED)

    def has_all(self, schedule: RankSchedule, names: Sequence[str]) -> bool:
        """Whether all routes of the schedule are open."""
        return all(names[number] in self._open for number in schedule.routes)

    def expect(self, schedule: RankSchedule, names: Sequence[str], addresses: Sequence[str]) -> None:
        """Keep from now on what members of the schedule's routes send: some open theirs a moment earlier."""
        for number in schedule.routes:
            members = {rank: addresses[rank] for rank in schedule.plan.routes[number].ranks}
            self._mailbox.open_route(names[number], members)
            self._expected.add(names[number])

    def open(
        self, schedule: RankSchedule, names: Sequence[str], addresses: Sequence[str], timeout: float, watch: Watch
    ) -> dict[int, OpenRoute]:
        """Attach to every route of the schedule, close those it does not use; by number of the route.

        Raises: what ``watch`` raises while others are waited for, and what the transport does.
        """
        self.round.close()
        plan = schedule.plan
        wanted = {number: names[number] for number in schedule.routes}
        for name in [name for name in self._open if name not in wanted.values()]:
            self._close(name)
        self._forget_all_but(addresses)
        for number, name in wanted.items():
            self._expected.discard(name)
            if name not in self._open:
                self._open[name] = self._attach(plan, number, name, schedule.rank, addresses, timeout, watch)
        return {number: self._open[name] for number, name in wanted.items()}

    def lend(
        self, schedule: RankSchedule, names: Sequence[str], extents: Mapping[int, Lendable]
    ) -> tuple[dict[int, list[Descriptor]], Buffer | None]:
        """Register what this rank sends from and receives into; the descriptors of what it lends, and its fill ring."""
        plan, rank = schedule.plan, schedule.rank
        sends = [number for number in schedule.routes if self._sends(plan, number, rank)]
        lands = [number for number in schedule.routes if self._lands(plan, number, rank)]
        rings = {
            use: self._ring(plan, rank, use, names, [*sends, *lands])
            for use in RingUse
            if plan.ring(rank, use) is not None
        }
        self._drop_rings(rings.values())
        self._lent = descriptors = {}
        for number in schedule.routes:
            route = self._open[names[number]]
            used = [_resolve(lent, extents, rings) for lent in schedule.lent[number]] if number in sends else []
            landing = [rings[RingUse.RECEIVE]] if number in lands else []
            route.keep_only([*used, *landing])
            route.attachment.lent = [route.region(buffer) for buffer in used]
            route.attachment.landing = route.region(landing[0]) if landing else None
            if used:
                descriptors[number] = [region.descriptor for region in route.attachment.lent]
        return descriptors, rings.get(RingUse.FILL)

    def lend_again(self) -> None:
        """Register memory that lies apart a second time: endpoints do more for what comes again, and whoever lends it
        does so at each step."""
        for route in self._open.values():
            buffers = [buffer for buffer, _ in route.regions.values()]
            apart = [buffer for buffer in buffers if not isinstance(buffer, Buffer)]
            route.keep_only([buffer for buffer in buffers if isinstance(buffer, Buffer)])
            for buffer in apart:
                route.region(buffer)

    def connect(self, routes: Mapping[int, OpenRoute], descriptors: ByRoute, name: str) -> None:
        """Have endpoints learn what senders lend, by route and rank; all of that has a name, or none where it is empty.

        Raises: what the transport does.
        """
        self._known = KnownDescriptors()
        for number, route in routes.items():
            route.attachment.endpoint.connect(descriptors.get(number, {}))
        self._known = KnownDescriptors(name, self._lent, descriptors)

    def named(self, name: str) -> ByRoute | None:
        """What ranks lend by that name; None where it is not known, or this rank lends something else by now."""
        return self._known.named(name, self._lent)

    def channel(self, schedule: RankSchedule, name: str, addresses: Sequence[str]) -> RouteControl:
        """A control channel between all ranks of the plan, until the round ends."""
        topology = schedule.plan.topology
        ranks = tuple(range(len(addresses)))
        group = Group(name, ranks, schedule.rank, tuple(topology.host(rank) for rank in ranks))
        control = RouteControl(self._mailbox, group, dict(enumerate(addresses)))
        self.round.callback(control.close)
        return control

    def forget(self, buffers: Sequence[Backing]) -> None:
        """Undo the registration of memory that is about to be freed."""
        for route in self._open.values():
            route.keep_only([kept for kept, _ in route.regions.values() if kept not in buffers])

    def abort(self, reason: BaseException) -> None:
        """Fail everything that is outstanding and close every route."""
        self.round.close()
        for route in self._open.values():
            route.attachment.endpoint.abort(reason)
        self.close()

    def close(self) -> None:
        """Close every route. Idempotent."""
        self.round.close()
        for name in list(self._open):
            self._close(name)
        for name in self._expected:
            self._mailbox.close_route(name)
        self._expected.clear()
        self._rings.clear()
        self._known = KnownDescriptors()

    def part(self) -> None:
        """Close every route, and the connections to all who took part in the last update."""
        self.close()
        self._forget_all_but(())

    def _forget_all_but(self, addresses: Sequence[str]) -> None:
        for address in self._fellows.difference(addresses):
            self._mailbox.forget(address)
        self._fellows = set(addresses)

    def _close(self, name: str) -> None:
        route = self._open.pop(name)
        for key in [key for key in self._rings if key[0] == name]:
            del self._rings[key]
        try:
            route.attachment.endpoint.close()
        finally:
            route.control.close()

    def _attach(
        self,
        plan: Plan,
        number: int,
        name: str,
        rank: int,
        addresses: Sequence[str],
        timeout: float,
        watch: Watch,
    ) -> OpenRoute:
        route = plan.routes[number]
        hosts = tuple(plan.topology.host(member) for member in route.ranks)
        group = Group(name, route.ranks, rank, hosts, route.devices)
        control = RouteControl(self._mailbox, group, dict(enumerate(addresses)))
        try:
            with control.watched_by(watch):
                endpoint = opened(self._load_transport(route.transport), group, control, timeout)
        except BaseException:
            control.close()
            raise
        return OpenRoute(RouteAttachment(endpoint), control)

    def _sends(self, plan: Plan, number: int, rank: int) -> bool:
        return any(leg.route == number and leg.sender == rank for hop in plan.hops for leg in hop.legs)

    def _lands(self, plan: Plan, number: int, rank: int) -> bool:
        return not plan.routes[number].maps_memory and not self._sends(plan, number, rank)

    def _ring(self, plan: Plan, rank: int, use: RingUse, names: Sequence[str], routes: Sequence[int]) -> Buffer:
        """The memory of a ring, from the endpoint that must own what it sends, where there is one."""
        ring = plan.ring(rank, use)
        assert ring is not None
        name = names[min(routes, key=lambda number: not plan.routes[number].maps_memory)]
        key = (name, use, ring.nbytes)
        if key not in self._rings:
            self._rings[key] = self._open[name].attachment.endpoint.allocate(ring.nbytes)
        return self._rings[key]

    def _drop_rings(self, kept: Iterable[Buffer]) -> None:
        alive = {id(buffer) for buffer in kept}
        self._rings = {key: buffer for key, buffer in self._rings.items() if id(buffer) in alive}


def _resolve(lent: Lent, extents: Mapping[int, Lendable], rings: Mapping[RingUse, Buffer]) -> Lendable:
    if lent.memory is LentKind.EXTENT:
        return extents[lent.extent]
    return rings[RingUse.FILL if lent.memory is LentKind.FILL else RingUse.RECEIVE]
