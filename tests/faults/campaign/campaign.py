"""Rounds of a campaign: an update that is disturbed, what must hold after it, and an update that repairs."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from ckpt_transport.transports import registry
from tests.faults.campaign import participants
from tests.faults.campaign.disturbance import SIGNALS, Disturbance, Strike
from tests.faults.campaign.participants import BOUND, Hang, Process, Said, Served
from tests.faults.campaign.witness import Half, expected
from tests.leftovers import left_behind, swept
from tests.support.transports import over_the_network

SINKS, HOLDERS = 2, 2
STAGING_SINKS = 3
"""Of these two live on whoever is killed, so none stays in doubt."""
HALVES: tuple[Half, ...] = (0, 1, None)
"""Two engines that serve a half each, and one that serves everything."""
COMMITS_AFTER, NEAR_THE_COMMIT = 0.7, 0.6
"""After which part of a staged update its commit may begin, and how many of the disturbances come after that."""
JOINS = 0.25
"""How many of the updates are joins, in which holders bring the version."""
STAYS = 0.6
"""How often the next update goes over the same transport, from the same source."""
DESCRIPTORS = 40
"""By how many the open files of an engine may grow in all that it lives through."""
ENDINGS = ("committed", "UpdateAbortedError", "TaintedError", "KeyboardInterrupt", "died")
"""How a disturbed update may end."""
SECONDS_AT_FIRST = 0.15
"""How long an update is taken to last before one has been seen."""


class Violation(AssertionError):
    """Something that must hold did not."""


@dataclass
class Outcome:
    """What became of one disturbed update.

    Attributes:
        number: which round it was.
        said: how its leader says that it ended.
        tainted: how many engines that lived refused to serve.
        alive: how many engines lived.
        violation: what did not hold; empty when all did.
    """

    number: int
    transport: str
    kind: str
    disturbance: Disturbance
    said: Said = field(default_factory=lambda: Said("nothing"))
    tainted: int = 0
    alive: int = 0
    seconds: float = 0.0
    violation: str = ""

    def __str__(self) -> str:
        end = f"; VIOLATION: {self.violation}" if self.violation else ""
        why = f" ({self.said.message or self.said.lost})" if self.said.message or self.said.lost else ""
        return (
            f"{self.number}: {self.kind} over {self.transport}, {self.disturbance}: {self.said.kind}{why}, "
            f"{self.tainted} of {self.alive} engines tainted, {self.seconds:.1f} s{end}"
            f"{f'; {self.said.sent}' if self.said.sent else ''}"
        )


class Campaign:
    """Engines that live from round to round, and whoever updates them.

    Every round is chosen by ``seed`` and its number alone, so any of them can be had again. With ``commit`` staged no
    engine may ever refuse to serve, and all that live serve one version. ``halves`` says what each engine serves; by
    default everything. Who has a half takes the first version in place, in a repair, and deltas afterwards.
    """

    def __init__(
        self,
        seed: int,
        transports: Sequence[str],
        commit: str = "in_place",
        delta: str = "off",
        halves: Sequence[Half] = (),
    ) -> None:
        self.seed, self.transports, self.commit, self.delta = seed, tuple(transports), commit, delta
        self._staged = commit == "staged"
        self._halves = tuple(halves) or (None,) * (STAGING_SINKS if self._staged else SINKS)
        self._half_of: dict[str, Half] = {}
        self._far = [name for name in over_the_network() if name in transports] or ["gloo"]
        self._stack = ExitStack()
        self._started = 0
        self._version = 1
        self._seconds: dict[tuple[str, str], float] = {}
        self.sinks: list[Process] = []
        self._holds: dict[str, int] = {}
        self._descriptors: dict[str, dict[str, int]] = {}
        self._source: Process | None = None
        self._transport = ""
        self._folder = Path()

    def __enter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="campaign-")))
        try:
            for half in self._halves:
                self.sinks.append(self._new_sink(half))
            self._repair(self.transports[0])
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for process in [*self.sinks, *([self._source] if self._source else [])]:
            process.end()
        self._stack.close()
        if not swept() and kind is None:
            raise Violation(f"shared memory is left: {left_behind()}")

    # -- one round ----------------------------------------------------------------------------------------------

    def round(self, number: int) -> Outcome:
        """Disturb one update, check, and repair. What did not hold is in the outcome."""
        chance = random.Random(f"{self.seed} {number}")
        joins = not self._staged and chance.random() < JOINS
        transport = chance.choice(self._far if joins else self.transports)
        if not joins and self._transport and chance.random() < STAYS:
            transport = self._transport
        roles = (
            {"joiner": 1, "holder": HOLDERS, "sink": len(self.sinks)}
            if joins
            else {"source": 1, "sink": len(self.sinks)}
        )
        kind = "join" if joins else "update"
        longest = self._seconds.get((kind, transport), SECONDS_AT_FIRST)
        earliest = COMMITS_AFTER * longest if self._staged and chance.random() < NEAR_THE_COMMIT else 0.0
        disturbance = Disturbance.choose(chance, roles, earliest, longest)
        outcome = Outcome(number, transport, kind, disturbance)
        began = time.monotonic()
        try:
            self._disturb(outcome, joins)
            self._repair(transport)
        except (Violation, Hang) as error:
            outcome.violation = str(error)
        outcome.seconds = time.monotonic() - began
        return outcome

    def _disturb(self, outcome: Outcome, joins: bool) -> None:
        seed = self._next_version()
        with self._bringers(outcome.transport, joins, seed) as (leader, roles):
            victim = roles[outcome.disturbance.victim][outcome.disturbance.which]
            began = time.monotonic()
            outcome.said = self._lead(leader, seed, lambda: Strike(outcome.disturbance, victim))
            if victim is not leader and outcome.disturbance.act in SIGNALS and not victim.has_ended():
                raise Violation(f"{victim.name} lives on after {outcome.disturbance.act}")
            if time.monotonic() - began > BOUND:
                raise Violation(f"the update took {time.monotonic() - began:.0f} s")
            self._check(outcome, seed, victim)
        self._learn(outcome.kind, outcome.transport, outcome.said)

    def _learn(self, kind: str, transport: str, said: Said) -> None:
        """Keep in mind how long such an update takes at least, so that the next is disturbed while it runs."""
        if said.kind == "committed":
            known = self._seconds.get((kind, transport), said.seconds)
            self._seconds[kind, transport] = min(known, said.seconds)

    def _lead(self, leader: Process, seed: int, strike: Callable[[], Strike] | None = None) -> Said:
        leader.tell("update", seed, [sink.first for sink in self.sinks])
        if leader.answer() is None:
            return Said("died")
        if strike is None:
            return leader.answer() or Said("died")
        with strike():
            return leader.answer() or Said("died")

    @contextmanager
    def _bringers(self, transport: str, joins: bool, seed: int) -> Iterator[tuple[Process, dict[str, list[Process]]]]:
        """Whoever leads the update, and all who take part in it by role."""
        if not joins:
            leader = self._source_over(transport)
            yield leader, {"source": [leader], "sink": self.sinks}
            return
        with ExitStack() as stack:
            paths = [str(self._folder / f"{seed}-{number}.json") for number in range(HOLDERS)]
            holders = [self._new("holder", participants.holder, seed, transport, path) for path in paths]
            for holder in holders:
                stack.callback(holder.end)
            leader = self._new("joiner", participants.joiner, transport, paths)
            stack.callback(leader.end)
            yield leader, {"joiner": [leader], "holder": holders, "sink": self.sinks}

    # -- what must hold -----------------------------------------------------------------------------------------

    def _check(self, outcome: Outcome, seed: int, victim: Process) -> None:
        said = outcome.said
        if not said.ours or said.kind not in ENDINGS:
            raise Violation(f"the update raised {said.kind}: {said.message}")
        states = {sink.name: self._settled(sink, seed) for sink in self._living()}
        outcome.alive = len(states)
        outcome.tainted = sum(bool(state.tainted) for state in states.values())
        for sink in self._living():
            state, old = states[sink.name], self._holds[sink.name]
            serves = 0 if state.tainted else seed if state.version == f"v{seed}" else old
            if wrong := _contradiction(said, sink, serves, seed, old, is_victim=sink is victim):
                raise Violation(f"{sink.name} at {sink.first} {wrong}, and {said.kind} says otherwise: {said}")
            self._holds[sink.name] = serves or old
        if self._staged:
            self._check_one_version(states, victim)

    def _check_one_version(self, states: Mapping[str, Served], victim: Process) -> None:
        """No engine refuses to serve, and all serve one version, but for one that stood still and was given up."""
        if refusing := [name for name, state in states.items() if state.tainted]:
            raise Violation(f"{', '.join(refusing)} refuse to serve after a staged update")
        versions = {name: state.version for name, state in states.items() if name != victim.name}
        if len(set(versions.values())) > 1:
            raise Violation(f"engines that lived serve {versions}")

    def _settled(self, sink: Process, seed: int) -> Served:
        """Ask until it serves one version whole, or refuses; a sink whose leader is dead needs a while to see that."""
        end, old, half = time.monotonic() + BOUND, self._holds[sink.name], self._half_of[sink.name]
        allowed = {f"v{number}": number for number in (old, seed)}
        while True:
            state: Served | None = sink.ask("state")
            if state is None:
                raise Violation(f"{sink.name} died, and nobody killed it")
            for passed in state.seen:
                if passed not in {expected(number, half)[1] for number in allowed.values()}:
                    raise Violation(f"a forward pass of {sink.name} saw neither v{old} nor v{seed}, or a mix")
            if state.tainted and state.refused == "TaintedError":
                return state
            number = allowed.get(state.version)
            if number and not (state.tainted or state.refused) and state.weights == expected(number, half)[0]:
                return state
            if time.monotonic() > end:
                whole = [name for name, number in allowed.items() if state.weights == expected(number, half)[0]]
                raise Violation(
                    f"{sink.name} says version {state.version}, tainted '{state.tainted}', refuses with "
                    f"'{state.refused}', and its weights are {whole or 'a mix'}"
                )
            time.sleep(0.1)

    def _repair(self, transport: str) -> None:
        """Replace the dead, and update all: that must succeed, whatever was before."""
        for index, sink in enumerate(self.sinks):
            if not sink.alive:
                sink.end()
                self.sinks[index] = self._new_sink(self._halves[index])
        source, seed = self._source_over(transport), self._next_version()
        said = self._lead(source, seed)
        if said != Said("committed"):
            raise Violation(f"the repair over {transport} ended with {said}")
        self._learn("update", transport, said)
        for sink in self.sinks:
            state = self._settled(sink, seed)
            if state.tainted or state.version != f"v{seed}":
                raise Violation(f"after the repair {sink.name} serves {state.version}, tainted '{state.tainted}'")
            self._holds[sink.name] = seed
            self._check_files(sink, transport, state.descriptors)

    def _check_files(self, sink: Process, transport: str, now: int) -> None:
        """A library opens files when it is first used; after that there must not be more and more."""
        known = self._descriptors.setdefault(sink.name, {})
        usual = known.setdefault(transport, now)
        if now > max(usual, *known.values()) + DESCRIPTORS:
            raise Violation(f"{sink.name} had {usual} open files after an update over {transport}, and now has {now}")

    # -- processes ----------------------------------------------------------------------------------------------

    def _living(self) -> list[Process]:
        return [sink for sink in self.sinks if sink.alive]

    def _next_version(self) -> int:
        self._version += 1
        return self._version

    def _new(self, role: str, main: Callable[..., None], *args: object) -> Process:
        self._started += 1
        return Process(f"{role}-{self._started:04}", main, *args)

    def _new_sink(self, half: Half) -> Process:
        seed = self._next_version()
        made = self._new("sink", participants.sink, seed, half)
        self._holds[made.name], self._half_of[made.name] = seed, half
        return made

    def _source_over(self, transport: str) -> Process:
        if self._source is not None and (transport != self._transport or self._source.ask("ping") is None):
            self._source.end()
            self._source = None
        if self._source is None:
            commit = "auto" if any(half is not None for half in self._halves) else self.commit
            self._source = self._new("source", participants.source, transport, commit, self.delta)
            self._transport = transport
        return self._source


def _contradiction(said: Said, sink: Process, serves: int, seed: int, old: int, *, is_victim: bool) -> str:
    """How what the sink does contradicts what the leader says of it; empty when it does not.

    Of a victim that was only stopped nobody can know more than that it is gone.
    """
    is_now = f"serves v{serves}" if serves else "refuses to serve"
    if said.kind in ("died", "KeyboardInterrupt"):
        return ""
    if _named(sink, said.lost):
        return "" if is_victim or not serves else f"{is_now} and is called lost"
    if _named(sink, said.tainted):
        return "" if is_victim or not serves else is_now
    if said.kind == "committed" or _named(sink, said.serving):
        return "" if serves == seed else is_now
    return "" if serves == old or is_victim else is_now


def _named(sink: Process, text: str) -> bool:
    return sink.name in text or sink.first in text


def available() -> tuple[str, ...]:
    """The transports that the campaign can go over here."""
    return tuple(name for name in ("shm", "gloo", "ucx", "nixl", "mooncake") if registry.available(name).ok)
