"""Ranks of one engine are updated before the same batch: dense models, models with tied weights, and experts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.sglang.conftest import Start
from tests.sglang.servers import TWO_CORES, TWO_RANKS, Replica, roll_back, update

KINDS = [("tied", 2), ("moe", 2), ("moe", 1)]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "{}, {} ranks".format(*kind))
def engine(request: pytest.FixtureRequest, start: Start) -> Iterator[tuple[Replica, int]]:
    """An engine that serves version 1, and how many ranks it has."""
    family, ranks = request.param
    if ranks > 1 and torch.cuda.device_count() == 1:
        pytest.skip("each rank needs a GPU of its own")
    arguments, environment = (TWO_RANKS, TWO_CORES) if ranks > 1 else ((), {})
    with start(family, 1, *arguments, **environment) as started:
        yield started.wait(), ranks


def test_given_ranks_when_versions_come_and_go_then_each_is_what_sglangs_own_loader_loads(
    engine: tuple[Replica, int],
) -> None:
    replica, ranks = engine
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
    assert len(replica.sinks()) == ranks
    assert not any(replica.tainted())
