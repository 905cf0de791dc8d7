"""A vLLM that starts without weights joins what others hold, while another one serves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt_transport import Holder, Joiner
from ckpt_transport_vllm import VllmFleet
from tests.available import where_available
from tests.vllm.servers import Replica, Started, Traffic, swift


@pytest.fixture(scope="module")
def serving(started: Started) -> Iterator[Replica]:
    """An engine that has served version 2 from the start."""
    replica = started.start("qwen3", 2).wait()
    yield replica
    started.stop(replica)


@pytest.fixture(scope="module")
def empty(started: Started, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """An engine whose directory holds no weights."""
    directory = tmp_path_factory.mktemp("empty") / "no weights"
    shutil.copytree(checkpoints / "qwen3-1", directory, ignore=shutil.ignore_patterns("*.safetensors"))
    replica = started.start("qwen3", 1, ("--load-format=dummy",), directory=directory).wait()
    yield replica
    started.stop(replica)


@pytest.mark.parametrize("transport", ["gloo", "shm", *map(where_available, ("mooncake", "nixl", "ucx"))])
def test_given_two_holders_then_an_engine_joins_from_both_and_the_other_one_serves_on(
    serving: Replica, empty: Replica, tmp_path: Path, transport: str
) -> None:
    """Also over memory that is read in place, out of which a loader keeps tensors."""
    seed = 2 if transport == "gloo" else 1
    checkpoint, config = serving.checkpoint(seed), swift(transport=transport, bucket_bytes="1MiB")
    with (
        Holder("step-42", directory=checkpoint, config=config) as one,
        Holder("step-42", directory=checkpoint, config=config) as two,
    ):
        paths = []
        for number, holder in enumerate((one.start(), two.start())):
            paths.append(tmp_path / f"{number}.json")
            holder.address_file.save(paths[-1], config)
        before = serving.answers()
        with Traffic([serving]) as traffic, VllmFleet([empty.url], config) as fleet:
            done = fleet.update(Joiner(paths, config), "step-42")
            traffic.wait(3)
    assert done is not None
    assert done.problems == ()
    assert len(done.update.plan.manifest.owners) == 2
    assert empty.version() == "step-42"
    assert {completion.tokens for completion in traffic.done[serving.url]} == {before.tokens[0]}
    if seed == 2:
        assert empty.answers() == before
    else:
        assert empty.answers() != before
        with (
            Holder("two", directory=serving.checkpoint(2), config=config) as holder,
            VllmFleet([empty.url], config) as fleet,
        ):
            holder.start().address_file.save(paths[0], config)
            fleet.update(Joiner(paths[:1], config), "two")
        assert empty.answers() == before


def test_given_no_holder_answers_then_the_engine_serves_as_before(
    serving: Replica, empty: Replica, tmp_path: Path
) -> None:
    """Nothing is paused for what cannot be."""
    config = swift(transport="gloo", join_timeout=15)
    path = tmp_path / "metas.json"
    with Holder("step-43", directory=serving.checkpoint(1), config=config) as gone:
        gone.address_file.save(path, config)
    before = empty.answers()
    with VllmFleet([empty.url], config) as fleet, pytest.raises(Exception, match="it does not answer"):
        fleet.update(Joiner([path], config), "step-43")
    assert not empty.is_paused()
    assert empty.answers() == before
