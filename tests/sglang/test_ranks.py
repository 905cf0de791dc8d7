"""Ranks of one engine are updated before the same batch: dense models, models with tied weights, and experts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.sglang.conftest import Start
from tests.sglang.servers import TWO_CORES, TWO_RANKS, Replica, roll_back, update


@pytest.fixture(scope="module", params=["tied", "moe"])
def replica(request: pytest.FixtureRequest, start: Start) -> Iterator[Replica]:
    """An engine of two ranks, which serves version 1."""
    if torch.cuda.device_count() == 1:
        pytest.skip("each rank needs a GPU of its own")
    with start(request.param, 1, *TWO_RANKS, **TWO_CORES) as started:
        yield started.wait()


def test_given_two_ranks_when_versions_come_and_go_then_each_is_what_sglangs_own_loader_loads(replica: Replica) -> None:
    second, first = replica.loaded_by_itself(2), replica.loaded_by_itself(1)
    assert second != first
    done = update([replica], replica.checkpoint(2), "two")
    assert all("found to be the same" in summary for summary in done.update.apply_summary.values()), done
    assert replica.answers() == second
    done = update([replica], replica.checkpoint(1), "one")
    assert all(summary.startswith("replayed in") for summary in done.update.apply_summary.values()), done
    assert replica.answers() == first
    update([replica], replica.checkpoint(2), "two", commit="staged")
    assert replica.answers() == second
    roll_back(replica)
    assert replica.answers() == first
    assert replica.version() == "one"
    assert len(replica.sinks()) == 2
    assert not any(replica.tainted())
