"""The commit of a staged update as a model: every order of messages, and every crash, of a coordinator and its sinks.

The sinks' decisions are those of :class:`Settlement`. The network keeps the order of each channel and loses nothing. A
process is taken for dead when it is, and everything that it has sent has arrived.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from ckpt_transport.update.settlement import Course, Settlement, Standing

COORDINATOR = -1
Messages = tuple[str, ...]
S = Standing


@dataclass(frozen=True, slots=True)
class Sink:
    """A sink of the model: how far it is, what it serves, and what it has heard of the others once it settles."""

    standing: Standing = S.UNKNOWN
    serves: str = "old"
    settling: bool = False
    heard: tuple[tuple[int, Standing], ...] = ()
    lost: frozenset[int] = frozenset()
    in_doubt: bool = False


@dataclass(frozen=True, slots=True)
class World:
    """A state of the model. ``said`` is what the coordinator has sent of its current phase."""

    sinks: tuple[Sink, ...]
    phase: str = "Apply"
    said: int = 0
    answered: frozenset[int] = frozenset()
    channels: tuple[tuple[tuple[int, int], Messages], ...] = ()
    dead: frozenset[int] = frozenset()

    def channel(self, sender: int, receiver: int) -> Messages:
        return dict(self.channels).get((sender, receiver), ())

    def with_channel(self, sender: int, receiver: int, messages: Messages) -> World:
        channels = dict(self.channels)
        channels.pop((sender, receiver), None)
        if messages:
            channels[sender, receiver] = messages
        return replace(self, channels=tuple(sorted(channels.items())))

    def send(self, sender: int, receiver: int, message: str) -> World:
        if receiver in self.dead:
            return self
        return self.with_channel(sender, receiver, (*self.channel(sender, receiver), message))

    def with_sink(self, rank: int, sink: Sink) -> World:
        return replace(self, sinks=(*self.sinks[:rank], sink, *self.sinks[rank + 1 :]))

    def drained(self, sender: int) -> bool:
        return all(origin != sender for (origin, _), _ in self.channels)

    def others(self, rank: int) -> list[int]:
        return [other for other in range(len(self.sinks)) if other != rank]


NEXT = {"Apply": "Decide", "Decide": "Commit", "Commit": "done", "Abort": "done"}


def coordinated(world: World) -> Iterator[World]:
    """What the coordinator can do: say its phase to one more sink, go on when all who live have answered, or abort."""
    if COORDINATOR in world.dead or world.phase == "done":
        return
    ranks = range(len(world.sinks))
    seen_dead = {rank for rank in ranks if rank in world.dead and world.drained(rank)}
    if world.phase == "Apply" and seen_dead:
        yield replace(world, phase="Abort", said=0, answered=frozenset())
        return
    if world.said < len(world.sinks):
        yield replace(world.send(COORDINATOR, world.said, world.phase), said=world.said + 1)
    elif world.phase == "Abort" or world.answered >= set(ranks) - seen_dead:
        yield replace(world, phase=NEXT[world.phase], said=0, answered=frozenset())


def delivered(world: World) -> Iterator[World]:
    """Each channel's oldest message arrives."""
    for (sender, receiver), (message, *rest) in world.channels:
        if receiver in world.dead:
            continue
        taken = world.with_channel(sender, receiver, tuple(rest))
        if receiver == COORDINATOR:
            answered = taken.answered | {sender} if message == taken.phase else taken.answered
            yield replace(taken, answered=answered)
        elif sender == COORDINATOR:
            yield ordered(taken, receiver, message)
        else:
            yield said_by_sink(taken, sender, receiver, message)


def ordered(world: World, rank: int, order: str) -> World:
    sink = world.sinks[rank]
    if sink.settling or sink.standing in (S.FORWARD, S.BACK):
        return world
    match order:
        case "Apply":
            sink = replace(sink, standing=S.APPLIED, serves="")
        case "Decide":
            assert sink.standing is S.APPLIED
            sink = replace(sink, standing=S.DECIDED)
        case "Commit":
            assert sink.standing is S.DECIDED
            sink = replace(sink, standing=S.FORWARD, serves="new")
        case "Abort":
            return world.with_sink(rank, replace(sink, standing=S.BACK, serves="old"))
    return world.with_sink(rank, sink).send(rank, COORDINATOR, order)


def begins_to_settle(world: World, rank: int) -> World:
    sink = world.sinks[rank]
    if sink.standing is S.UNKNOWN:
        return world.with_sink(rank, replace(sink, standing=S.BACK, serves="old"))
    if sink.settling or sink.standing in (S.FORWARD, S.BACK):
        return world
    world = world.with_sink(rank, replace(sink, settling=True))
    for other in world.others(rank):
        world = world.send(rank, other, "Ask")
    return settles(world, rank)


def said_by_sink(world: World, sender: int, receiver: int, message: str) -> World:
    if message == "Ask":
        world = begins_to_settle(world, receiver)
        return world.send(receiver, sender, world.sinks[receiver].standing.name)
    sink = world.sinks[receiver]
    if not sink.settling:
        return world
    heard = dict(sink.heard) | {sender: Standing[message]}
    return settles(world.with_sink(receiver, replace(sink, heard=tuple(sorted(heard.items())))), receiver)


def settles(world: World, rank: int) -> World:
    """As the sink of that rank decides by what it has heard."""
    sink = world.sinks[rank]
    settlement = Settlement(rank, world.others(rank), sink.standing)
    for other, standing in sink.heard:
        settlement.hears(other, standing)
    for other in sink.lost:
        settlement.loses(other)
    match settlement.course():
        case Course.FORWARD:
            ended = replace(sink, standing=S.FORWARD, serves="new", settling=False, in_doubt=False)
        case Course.BACK:
            ended = replace(sink, standing=S.BACK, serves="old", settling=False, in_doubt=False)
        case Course.IN_DOUBT:
            return world.with_sink(rank, replace(sink, in_doubt=True))
        case _:
            return world
    world = world.with_sink(rank, replace(ended, heard=(), lost=frozenset()))
    for other in world.others(rank):
        world = world.send(rank, other, ended.standing.name)
    return world


def noticed(world: World) -> Iterator[World]:
    """A sink notices that the coordinator is dead, or another sink that it has asked."""
    for rank, sink in enumerate(world.sinks):
        if rank in world.dead:
            continue
        if COORDINATOR in world.dead and world.drained(COORDINATOR):
            after = begins_to_settle(world, rank)
            if after != world:
                yield after
        for other in world.others(rank) if sink.settling else ():
            if other in world.dead and world.drained(other) and other not in sink.lost:
                yield settles(world.with_sink(rank, replace(sink, lost=sink.lost | {other})), rank)


def crashed(world: World, crashes: int) -> Iterator[World]:
    if len(world.dead) < crashes:
        for process in (COORDINATOR, *range(len(world.sinks))):
            if process not in world.dead:
                channels = tuple(each for each in world.channels if each[0][1] != process)
                yield replace(world, dead=world.dead | {process}, channels=channels)


def explored(sinks: int, crashes: int) -> Iterator[tuple[World, bool]]:
    """Every state that can be reached, and whether it is an end: nothing happens there without another crash."""
    first = World(tuple(Sink() for _ in range(sinks)))
    seen, waiting = {first}, [first]
    while waiting:
        world = waiting.pop()
        after = [*coordinated(world), *delivered(world), *noticed(world)]
        yield world, not [each for each in after if each != world]
        for each in (*after, *crashed(world, crashes)):
            if each not in seen:
                seen.add(each)
                waiting.append(each)


@pytest.mark.parametrize(("sinks", "crashes"), [(1, 2), (2, 3), (3, 3)])
def test_given_any_order_and_any_crashes_then_survivors_serve_one_version(sinks: int, crashes: int) -> None:
    ends = 0
    for world, is_end in explored(sinks, crashes):
        living = [sink for rank, sink in enumerate(world.sinks) if rank not in world.dead]
        assert not {"old", "new"} <= {sink.serves for sink in living}, world
        if is_end:
            ends += 1
            for sink in living:
                alone = len(living) == 1 and sinks > 1
                assert sink.standing in (S.FORWARD, S.BACK) or (alone and sink.in_doubt), world
    assert ends


def test_given_no_crash_then_all_serve_the_new_version() -> None:
    ends = [world for world, is_end in explored(3, 0) if is_end]
    assert ends
    assert {sink.serves for world in ends for sink in world.sinks} == {"new"}


def test_given_a_sink_that_dies_before_the_decision_then_the_others_serve_the_old_version() -> None:
    for world, is_end in explored(2, 1):
        if is_end and world.dead == {0} and world.sinks[0].standing is S.UNKNOWN:
            assert world.sinks[1].serves == "old", world


def test_given_others_that_started_anew_then_a_sink_decides_alone() -> None:
    settlement = Settlement(1, [0, 2], S.DECIDED)
    settlement.hears(0, S.UNKNOWN)
    assert settlement.course() is Course.WAIT
    settlement.hears(2, S.UNKNOWN)
    assert settlement.course() is Course.FORWARD


def test_given_a_decider_that_dies_then_the_next_one_decides() -> None:
    settlement = Settlement(1, [0, 2], S.APPLIED)
    settlement.hears(0, S.APPLIED)
    settlement.hears(2, S.DECIDED)
    assert settlement.course() is Course.WAIT
    settlement.loses(0)
    assert settlement.course() is Course.FORWARD
