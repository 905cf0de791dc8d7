"""Given a vLLM whose model is cut into stages, and one with two copies of it, then all parts are updated together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ckpt_transport import ask_version
from ckpt_transport.service.endpoints import client_of
from ckpt_transport_vllm import VllmFleet
from tests.support.vllm_server import COMPLETIONS, greedy
from tests.vllm.servers import PATIENCE, PROMPTS, TWO_CORES, Replica, Started, Traffic, roll_back, swift, update

pytestmark = pytest.mark.alone
STAGES = ("--pipeline-parallel-size=2", "--no-enforce-eager", '--compilation-config={"mode": 2, "backend": "eager"}')
"""vLLM 0.32.0 for CPUs makes what one stage gives to the next only when it warms up, which it does not when eager."""
COPIES = ("--data-parallel-size=2", "--api-server-count=1")


@pytest.fixture(scope="module")
def servers(started: Started) -> Iterator[tuple[Replica, Replica]]:
    """One of two stages, which serves version 1, and one of two copies, which serves version 2."""
    cut, copied = started.start("qwen3", 1, STAGES, TWO_CORES), started.start("qwen3", 2, COPIES, TWO_CORES)
    yield cut.wait(), copied.wait()
    started.stop(cut, copied)


@pytest.fixture(scope="module")
def tokens(servers: tuple[Replica, Replica]) -> tuple[list[int], list[int]]:
    """What version 1 and version 2 say."""
    cut, copied = servers
    return cut.complete(PROMPTS[0]), copied.complete(PROMPTS[0])


def told_by_each(copied: Replica) -> list[list[int]]:
    """What each copy of the model says."""
    found: list[list[int]] = []
    with client_of(copied.url, PATIENCE) as client:
        for rank in ("0", "1"):
            answer = client.post(COMPLETIONS, json=greedy(PROMPTS[0], 12), headers={"X-data-parallel-rank": rank})
            answer.raise_for_status()
            found.append(answer.json()["choices"][0]["token_ids"])
    return found


def sinks_of(server: Replica) -> tuple[str, ...]:
    """Of all workers, as a fleet finds them."""
    with VllmFleet([server.url], swift()) as fleet:
        return fleet.sinks()


@pytest.mark.parametrize(("pause", "seed"), [("keep", 2), ("none", 1)])
def test_given_stages_and_copies_then_one_plan_updates_all_of_them_and_each_says_so(
    servers: tuple[Replica, Replica], tokens: tuple[list[int], list[int]], pause: str, seed: int
) -> None:
    cut, copied = servers
    with Traffic(servers) as traffic:
        traffic.wait(1)
        done = update(servers, cut.checkpoint(seed), f"v{seed}", pause=pause)
        traffic.wait(1)
    assert done.problems == ()
    assert len(done.update.plan.topology.sinks) == 4
    assert cut.complete(PROMPTS[0]) == tokens[seed - 1]
    assert told_by_each(copied) == [tokens[seed - 1]] * 2
    for server in servers:
        assert server.version() == f"v{seed}"
        assert not server.is_paused()
        assert {ask_version(sink, timeout=PATIENCE).version for sink in sinks_of(server)} == {f"v{seed}"}
    assert not any(completion.error for done in traffic.done.values() for completion in done)


def test_given_a_loader_that_was_replayed_then_each_stage_is_sent_its_layers_and_both_go_back(
    servers: tuple[Replica, Replica], tokens: tuple[list[int], list[int]]
) -> None:
    cut, copied = servers
    for seed in (1, 2):
        report = update(servers, cut.checkpoint(seed), f"v{seed}", commit="auto", transport="gloo").update
    assert report.staged, report.in_place
    stages = {sink: told for sink, told in report.plan.bytes_to.items() if told < report.plan.manifest.nbytes}
    assert len(stages) == (2 if report.plan.moves_shares else 0), "whether everything to all is cheaper, rates decide"
    assert (cut.complete(PROMPTS[0]), told_by_each(copied)) == (tokens[1], [tokens[1]] * 2)
    roll_back(servers)
    assert (cut.complete(PROMPTS[0]), told_by_each(copied)) == (tokens[0], [tokens[0]] * 2)
