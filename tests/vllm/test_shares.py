"""Given a vLLM whose ranks share out experts, when it is updated again and again, then each rank is sent its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from ckpt_transport.planning import explain
from tests.vllm.servers import TWO_CORES, TWO_RANKS, Answers, Replica, Started, update

EXPERT_PARALLEL = (*TWO_RANKS, "--enable-expert-parallel")
FAMILIES = {"moe": EXPERT_PARALLEL, "qwen3": TWO_RANKS}
LEAST = {"moe": 0.50, "qwen3": 0.50}
MOST = {"moe": 0.60, "qwen3": 0.85}
"""Of all bytes. Norms and embeddings' scales go to both ranks, and what is sliced by columns goes whole to both."""


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """Servers of models for which buckets cost less than bytes."""
    folder = tmp_path_factory.mktemp("larger")
    options = [f"--family={name}" for name in FAMILIES] + ["--seed=1", "--seed=2", "--hidden=512", "--layers=4"]
    command = [sys.executable, "-m", "ckpt_transport_vllm.demo.tiny", str(folder), *options]
    subprocess.run(command, check=True, capture_output=True)
    running = Started(folder, tmp_path_factory.mktemp("logs"))
    yield running
    running.close()


@pytest.fixture(params=FAMILIES)
def kinds(request: pytest.FixtureRequest, larger: Started) -> Iterator[tuple[Replica, Answers, Answers]]:
    """A server of version 1, and what servers say that were started from version 1 and 2."""
    arguments = FAMILIES[request.param]
    one, two = (larger.start(request.param, seed, arguments, TWO_CORES) for seed in (1, 2))
    first, second = one.wait().answers(), two.wait().answers()
    larger.stop(two)
    yield one, first, second
    larger.stop(one)


@pytest.mark.parametrize("transport", ["gloo", "nixl"])
def test_the_first_update_goes_to_all_and_the_next_to_each_its_own(
    kinds: tuple[Replica, Answers, Answers], transport: str
) -> None:
    replica, first, second = kinds
    everything = update([replica], replica.checkpoint(2), "two", transport=transport).update.plan
    assert replica.answers() == second
    assert not everything.moves_shares
    for seed, expected in ((1, first), (2, second)):
        done = update([replica], replica.checkpoint(seed), f"again {seed}", transport=transport).update
        assert replica.answers() == expected
        assert all(told.startswith("replayed") for told in done.told.values())
        shares = {nbytes / everything.manifest.nbytes for nbytes in done.plan.bytes_to.values()}
        assert LEAST[replica.family] <= min(shares) <= max(shares) <= MOST[replica.family], explain(done.plan)
