"""A plan as a schedule in GOAL, which simulators of networks read."""

from __future__ import annotations

import io
import re
from collections import Counter, defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from ckpt_transport.errors import ConfigError
from ckpt_transport.planning import Plan
from ckpt_transport.simulator import SimulatedWorld, simulate, write_goal
from ckpt_transport.simulator.cluster import Costs
from ckpt_transport.simulator.goal import Schedule
from ckpt_transport.transports.interface import FanOut
from tests.unit.simulator.small import MIB, cluster, planned, world

MESSAGE = re.compile(r"(l\d+): (send|recv) (\d+)b (?:to|from) (\d+) tag (\d+)")
WAITS = re.compile(r"(l\d+) requires (l\d+)")
WORK = re.compile(r"(l\d+): calc (\d+)( cpu [012])?")
Step = tuple[int, str]


class Read:
    """A schedule as text says it, every line of which must be known."""

    def __init__(self, plan: Plan, of: SimulatedWorld) -> None:
        text = io.StringIO()
        Schedule(plan, of).write(text)
        self.sent: dict[int, tuple[Step, int, int]] = {}
        self.taken: dict[int, tuple[Step, int, int]] = {}
        self.work: dict[Step, int] = {}
        self.waits: defaultdict[Step, set[Step]] = defaultdict(set)
        first, *blocks = text.getvalue().split("rank ")
        self.ranks = int(first.split()[1])
        for block in blocks:
            rank, *lines = block.strip().removesuffix("}").splitlines()
            for line in lines:
                self._read(int(rank.split()[0]), line)

    def _read(self, rank: int, line: str) -> None:
        if message := MESSAGE.fullmatch(line):
            label, what, nbytes, peer, tag = message.groups()
            (self.sent if what == "send" else self.taken)[int(tag)] = (rank, label), int(nbytes), int(peer)
        elif waits := WAITS.fullmatch(line):
            self.waits[rank, waits[1]].add((rank, waits[2]))
        elif work := WORK.fullmatch(line):
            self.work[rank, work[1]] = int(work[2])
        else:
            raise AssertionError(f"no line of GOAL: {line}")

    def order(self) -> list[Step]:
        """All steps, each after what it waits for and each receipt after its send; a circle raises."""
        graph = {step: set(waits) for step, waits in self.waits.items()}
        for tag, (receipt, _, _) in self.taken.items():
            graph.setdefault(receipt, set()).add(self.sent[tag][0])
        return list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize(
    ("transport", "fan_out"),
    [
        ("gloo+shm", FanOut.LINEAR),
        ("gloo+shm", FanOut.TREE),
        ("gloo+shm", FanOut.CONSTANT),
        ("gloo-chain+shm", FanOut.LINEAR),
    ],
)
def test_given_a_plan_then_each_send_has_its_receipt_and_nothing_waits_for_itself(
    transport: str, fan_out: FanOut, depth: int
) -> None:
    of = world(cluster(4, sinks=2), fan_out=fan_out)
    read = Read(planned(of, 8, transport, ring_depth=depth), of)
    assert read.ranks == len(of.topology.participants)
    assert read.sent.keys() == read.taken.keys()
    for tag, ((sender, _), nbytes, receiver) in read.sent.items():
        assert read.taken[tag] == (read.taken[tag][0], nbytes, sender)
        assert read.taken[tag][0][0] == receiver
    assert read.order()


def test_given_a_chain_then_each_far_host_is_sent_the_version_once() -> None:
    of = world(cluster(4))
    read = Read(planned(of, 8, "gloo-chain+shm"), of)
    moved = Counter({peer: 0 for _, _, peer in read.sent.values()})
    for _, nbytes, peer in read.sent.values():
        if nbytes > 1:
            moved[peer] += nbytes
    assert sorted(moved.values()) == [0, 0, 8 * MIB, 8 * MIB, 8 * MIB]


def test_given_work_of_ranks_then_it_takes_as_many_nanoseconds_as_in_our_own_simulator() -> None:
    of = world(cluster(2, costs=Costs(network=0, bucket=1e-3, receiver=0, apply=2e-3, piece=0)))
    made = planned(of, 8, "gloo+shm")
    times = Counter(round(nanoseconds, -3) for nanoseconds in Read(made, of).work.values())
    assert times[1_000_000] >= 8
    assert times[2_000_000] == simulate(made, of).applies


def test_given_a_file_that_cannot_be_written_then_it_is_named(tmp_path: Path) -> None:
    of = world(cluster(2))
    with pytest.raises(ConfigError, match=r"--goal: cannot write .*missing/plan\.goal: No such file"):
        write_goal(tmp_path / "missing" / "plan.goal", planned(of, 1), of)
