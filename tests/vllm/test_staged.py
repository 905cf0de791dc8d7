"""Given running vLLM servers, when versions are staged beside what they serve, then they can go back."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest

from ckpt_transport import FleetReport, ParameterServer, ask_version
from ckpt_transport.errors import UpdateAbortedError
from ckpt_transport.testing.engine import CHECKS, EngineCheck, Patience
from ckpt_transport_vllm import VllmFleet
from tests.vllm.servers import PATIENCE, Answers, Replica, Traffic, roll_back, swift, update
from tests.vllm.under_test import ReplicaUnderTest

Pair = tuple[Replica, Replica]
BUCKET = {"bucket_bytes": "64KiB"}


@pytest.fixture(scope="module")
def answers(pair: Pair) -> tuple[Answers, Answers]:
    """What version 1 and version 2 say on a fresh start; both servers have replayed their loader once afterwards."""
    one, two = pair
    fresh = one.answers(), two.answers()
    first = staged(pair, 1)
    assert not first.update.staged
    assert "its loader was not replayed yet" in first.update.in_place
    return fresh


def staged(pair: Pair, seed: int) -> FleetReport:
    return update(pair, pair[0].checkpoint(seed), f"v{seed}", commit="auto", **BUCKET)


def all_serve(pair: Pair, expected: Answers, version: str) -> bool:
    assert [replica.version() for replica in pair] == [version] * 2
    assert not any(replica.is_paused() for replica in pair)
    return [replica.answers() for replica in pair] == [expected] * 2


def previous(pair: Sequence[Replica]) -> set[str]:
    return {ask_version(sink, timeout=PATIENCE).previous for replica in pair for sink in replica.sinks()}


def test_given_requests_when_versions_are_staged_and_rolled_back_then_each_serves_what_a_fresh_start_does(
    pair: Pair, answers: tuple[Answers, Answers]
) -> None:
    first, second = answers
    assert all_serve(pair, first, "v1")
    with Traffic(pair) as traffic:
        traffic.wait(2)
        for seed, expected in ((2, second), (1, first), (2, second)):
            done = staged(pair, seed)
            assert done.update.staged, done.update.in_place
            assert done.problems == ()
            traffic.wait(3)
            for replica in pair:
                assert traffic.done[replica.url][-1].tokens == expected.tokens[0]
    assert [each.error for done in traffic.done.values() for each in done if each.error] == []
    assert all_serve(pair, second, "v2")
    for expected, version, other in ((first, "v1", "v2"), (second, "v2", "v1")):
        report = roll_back(pair).update
        assert (report.version, report.plan.buckets) == (version, ())
        assert all_serve(pair, expected, version)
        assert previous(pair) == {other}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_given_a_server_then_it_keeps_every_promise_of_an_engine(
    pair: Pair, answers: tuple[Answers, Answers], check: EngineCheck
) -> None:
    check(functools.partial(ReplicaUnderTest, pair[0], answers), patience=Patience(must=PATIENCE))


def test_given_versions_that_a_fleet_stages_then_the_commit_changes_answers_and_names_and_a_drop_changes_nothing(
    pair: Pair, answers: tuple[Answers, Answers]
) -> None:
    first, second = answers
    staged(pair, 1)
    config = swift(**BUCKET)
    with ParameterServer(config) as server, VllmFleet([each.url for each in pair], config) as fleet:
        server.register("v2", directory=pair[0].checkpoint(2))
        server.register("v1", directory=pair[0].checkpoint(1))
        with Traffic(pair) as traffic:
            job = fleet.stage(server, "v2")
            traffic.wait(2)
            assert all_serve(pair, first, "v1")
            done = job.commit()
            traffic.wait(2)
        assert done is not None
        assert (done.update.staged, done.problems) == (True, ())
        assert all(done.held[replica.url] > 0 for replica in pair)
        assert [each.error for done in traffic.done.values() for each in done if each.error] == []
        assert all_serve(pair, second, "v2")
        fleet.stage(server, "v1").drop()
        assert all_serve(pair, second, "v2")


class GivingUpError(BaseException):
    """Raised in the middle of an update."""


def test_given_a_source_that_gives_up_while_a_version_is_staged_then_both_servers_serve_on_and_take_the_next(
    pair: Pair, answers: tuple[Answers, Answers]
) -> None:
    def give_up(done: int, total: int) -> None:
        if done > total // 2:
            raise GivingUpError

    staged(pair, 1)
    config = swift(commit="staged", **BUCKET)
    with ParameterServer(config) as server, VllmFleet([each.url for each in pair], config) as fleet:
        server.register("v2", directory=pair[0].checkpoint(2))
        with pytest.raises(GivingUpError) as caught:
            fleet.update(server, "v2", give_up)
    assert isinstance(caught.value.__cause__, UpdateAbortedError)
    assert all_serve(pair, answers[0], "v1")
    assert previous(pair) == {""}
    assert staged(pair, 2).update.staged
    assert all_serve(pair, answers[1], "v2")
