"""Given bytes that differ from their digests, then a vLLM serves none of them.

Its engine may have completed a version before the last digest is compared: what it has of that is not served either.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ckpt_transport import ParameterServer, StoredVersion, TaintedError, UpdateAbortedError
from ckpt_transport_vllm import VllmFleet
from tests.vllm.servers import Answers, Replica, Started, swift, unanswered, update

SPOILED = "model.layers.1.mlp.down_proj.weight"
SAID = "were changed during the update"


@pytest.fixture(scope="module")
def replica(started: Started) -> Iterator[Replica]:
    """A server of version 1."""
    running = started.start("qwen3", 1)
    yield running.wait()
    started.stop(running)


@pytest.fixture(scope="module")
def answers(replica: Replica) -> tuple[Answers, Answers]:
    """What it says of both versions. It has replayed its loader, so that it can stage the next one."""
    first = replica.answers()
    update([replica], replica.checkpoint(2), "two")
    second = replica.answers()
    for _ in range(2):
        update([replica], replica.checkpoint(1), "one")
    assert replica.answers() == first
    return first, second


def spoil(stored: StoredVersion) -> None:
    """Change a byte of what lies ready to be sent, of which the digest was made before."""
    stored.tensors()[SPOILED].view(-1).view(torch.uint8)[5] ^= 1


def test_given_bytes_that_differ_when_they_are_written_in_place_then_the_engine_is_held_until_an_update_succeeds(
    replica: Replica, answers: tuple[Answers, Answers]
) -> None:
    config = swift(transport="shm")
    with ParameterServer(config) as server, VllmFleet([replica.url], config) as fleet:
        stored = server.register("two", directory=replica.checkpoint(2))
        fleet.update(server, "two")
        update([replica], replica.checkpoint(1), "one")
        spoil(stored)
        with pytest.raises(TaintedError, match=SAID):
            fleet.update(server, "two")
        assert "failed half-way" in replica.tainted()[0]
        spoil(stored)
        with unanswered(replica, 2.0):
            fleet.update(server, "two")
    assert replica.tainted() == [""]
    assert replica.answers() == answers[1]


def test_given_bytes_that_differ_when_they_are_staged_then_the_version_before_is_served_on(
    replica: Replica, answers: tuple[Answers, Answers]
) -> None:
    update([replica], replica.checkpoint(1), "one")
    config = swift(transport="shm", commit="staged")
    with ParameterServer(config) as server, VllmFleet([replica.url], config) as fleet:
        stored = server.register("two", directory=replica.checkpoint(2))
        fleet.update(server, "two")
        fleet.rollback(server)
        assert replica.answers() == answers[0]
        spoil(stored)
        with pytest.raises(UpdateAbortedError, match=SAID):
            fleet.update(server, "two")
        assert (replica.version(), replica.tainted(), replica.is_paused()) == ("one", [""], False)
        assert replica.answers() == answers[0]
        spoil(stored)
        done = fleet.update(server, "two")
        assert done is not None
        assert done.update.staged
    assert replica.answers() == answers[1]
