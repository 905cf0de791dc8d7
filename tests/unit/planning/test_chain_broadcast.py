"""Lines: each sink passes on to the next, nobody sends twice, and all links carry about as much."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from ckpt_transport.errors import ConfigError, CoverageError, PlanError
from ckpt_transport.planning import Plan, Settings, chain_broadcast, explain, plan, transports_of, verify
from ckpt_transport.planning.values.plan import Hop
from ckpt_transport.transports.interface import FanOut
from tests.unit.any_schedule import simulate
from tests.unit.worlds import INVENTED, manifest, topology, traits

replace = msgspec.structs.replace
READ_ONLY = {"read": INVENTED["read"]}


def chain(sources: list[str], sinks: list[str], transport: str = "read-chain", bucket_bytes: int = 1024) -> Plan:
    sizes = [[1000, 300, 2500, 40]] * len(sources)
    settings = Settings(transport=transport, bucket_bytes=bucket_bytes, ring_depth=2)
    return plan(manifest(*sizes), topology(sources, sinks), INVENTED, settings)


def carried(made: Plan) -> tuple[Counter[int], Counter[int]]:
    """Bytes that each rank sends and receives."""
    sent: Counter[int] = Counter()
    received: Counter[int] = Counter()
    for stage in made.stages:
        if stage.hop >= 0:
            for leg in made.hops[stage.hop].legs:
                sent[leg.sender] += made.buckets[stage.bucket].nbytes
                for rank in leg.receivers:
                    received[rank] += made.buckets[stage.bucket].nbytes
    return sent, received


def test_given_one_holder_and_many_sinks_then_everybody_sends_each_byte_at_most_once() -> None:
    made = chain(["a"], ["b", "c", "d", "e", "f", "g", "h", "i"])
    verify(made)
    assert [(leg.sender, leg.receivers) for hop in made.hops for leg in hop.legs] == [
        (rank, (rank + 1,)) for rank in range(8)
    ]
    sent, received = carried(made)
    total = sum(bucket.nbytes for bucket in made.buckets)
    assert set(sent.values()) == {total} == set(received.values())


@pytest.mark.parametrize(("holders", "sinks"), [(2, 8), (3, 6), (4, 4)])
def test_given_several_holders_then_each_chain_begins_elsewhere_and_links_carry_the_same(
    holders: int, sinks: int
) -> None:
    made = chain([f"s{n}" for n in range(holders)], [f"j{n}" for n in range(sinks)])
    verify(made)
    firsts = [hop.legs[0].receivers[0] for hop in made.hops if hop.legs[0].sender < holders]
    assert len(set(firsts)) == holders
    sent, received = carried(made)
    total = sum(bucket.nbytes for bucket in made.buckets)
    assert all(received[rank] == total for rank in made.topology.sinks)
    assert max(sent.values()) <= total
    simulate(made, seed=holders)


def test_given_hosts_of_several_sinks_then_the_chain_goes_over_their_heads() -> None:
    made = chain(["a"], ["a", "b", "b", "b", "c", "c"], "read-chain+window")
    verify(made)
    assert [[(leg.sender, leg.receivers) for leg in hop.legs] for hop in made.hops] == [
        [(0, (2,)), (0, (1,))],
        [(2, (5,)), (2, (3, 4))],
        [(5, (6,))],
    ]
    for seed in range(20):
        simulate(made, seed)


def test_given_many_sinks_and_a_transport_that_slows_with_each_then_auto_takes_a_chain() -> None:
    fleet = topology(["a"], [f"h{n}" for n in range(8)], transports=("read",))
    made = plan(manifest([1 << 20] * 200), fleet, READ_ONLY, Settings())
    assert made.notes[0] == "transport read-chain"
    direct = plan(made.manifest, fleet, READ_ONLY, Settings(transport="read"))
    assert direct.prediction.seconds > 6 * made.prediction.seconds
    assert "1 -> 2 over read" in explain(made)


def test_given_a_collective_then_a_chain_is_taken_only_when_it_is_named() -> None:
    fleet = topology(["a"], ["b", "c", "d"], transports=("wire",))
    known = {"wire": traits(fan_out=FanOut.TREE)}
    version = manifest([1 << 20] * 200)
    unnamed = plan(version, fleet, known, Settings())
    assert not any("chain" in note for note in (*unnamed.notes, *unnamed.others))
    assert plan(version, fleet, known, Settings(transport="wire-chain")).hops[1].legs[0].sender == 1


@pytest.mark.parametrize(
    ("transport", "sinks", "reason"),
    [
        ("read-chain+window", ["a", "a", "b"], "nobody to pass on to"),
        ("read-chain+window", ["b", "c"], "every host has one sink"),
        ("post-chain", ["a", "b"], r"post stays within a host, and sinks \[2\]"),
        ("screen-chain", ["a", "b"], "what screen brings is mapped"),
        ("read-chain", ["b"], "a chain needs two sinks"),
        ("read-chain+wire", ["b", "c"], "wire reaches other hosts itself"),
    ],
)
def test_given_a_chain_that_cannot_be_then_the_reason_is_named(transport: str, sinks: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        chain(["a"], sinks, transport)


def test_given_more_hosts_than_a_line_may_have_then_there_are_several_lines() -> None:
    made = chain(["a"], [f"h{n}" for n in range(600)], "read-chain")
    verify(made)
    assert len(made.hops) == 200
    assert {len(hop.legs) for hop in made.hops} == {3}
    assert [leg.receivers for leg in made.hops[0].legs] == [(1,), (201,), (401,)]
    assert [(leg.sender, leg.receivers) for leg in made.hops[-1].legs] == [(199, (200,)), (399, (400,)), (599, (600,))]


@pytest.mark.parametrize("transport", ["read-chain", "read-chain+window"])
def test_given_several_lines_then_they_run_under_any_schedule(monkeypatch: pytest.MonkeyPatch, transport: str) -> None:
    monkeypatch.setattr(chain_broadcast, "MOST_HOPS", 2)
    made = chain(["a", "b"], ["a", "c", "c", "d", "e", "e", "f", "g"], transport)
    verify(made)
    assert max(Counter(leg.sender for leg in made.hops[0].legs).values()) > 2
    for seed in range(20):
        simulate(made, seed)


def test_given_a_chain_that_is_broken_then_it_is_refused() -> None:
    """The hops are out of order; a sink is left out; a sink gets a bucket twice."""
    made = chain(["a"], ["b", "c", "d"])
    hops = made.hops
    with pytest.raises(CoverageError, match="which lack it"):
        verify(replace(made, hops=(hops[0], hops[2], hops[1])))
    with pytest.raises(PlanError):
        verify(replace(made, hops=hops[:2], routes=made.routes[:2]))
    back = replace(hops[2].legs[0], receivers=(1,))
    routes = (*made.routes[:2], replace(made.routes[2], ranks=(2, 1)))
    broken = replace(made, hops=(*hops[:2], Hop((replace(back, sender=2),))), routes=routes)
    with pytest.raises(CoverageError, match="has it already"):
        verify(broken)


def test_given_a_chain_then_its_name_tells_its_transports() -> None:
    assert transports_of("read-chain+window") == ("read", "window")
    assert transports_of("gloo") == ("gloo",)
