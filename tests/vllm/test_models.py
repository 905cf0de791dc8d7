"""Given a vLLM of some kind of model, when it is updated, then it answers as one that was started so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from safetensors.torch import load_file

from ckpt_transport.errors import UpdateAbortedError
from tests.support.vllm_server import NATIVE
from tests.vllm.servers import (
    CORES,
    SMALL_SLOTS,
    TWO_CORES,
    TWO_RANKS,
    Answers,
    Replica,
    Started,
    bring,
    pause_and_die,
    update,
)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

KINDS = [
    "qwen3",
    "tied",
    "moe",
    "neox",
    *(pytest.param(f"{family} on two ranks", marks=pytest.mark.alone) for family in ("qwen3", "moe")),
]


@pytest.fixture(scope="module", params=KINDS)
def kinds(request: pytest.FixtureRequest, started: Started) -> Iterator[tuple[Replica, Answers, Answers]]:
    """A server of version 1, and what servers say that were started from version 1 and 2."""
    family, _, ranks = request.param.partition(" ")
    arguments, environment = (TWO_RANKS, TWO_CORES) if ranks else ((), None)
    one, two = (started.start(family, seed, arguments, environment) for seed in (1, 2))
    first, second = one.wait().answers(), two.wait().answers()
    started.stop(two)
    yield one, first, second
    started.stop(one)


def test_given_two_versions_then_tokens_and_every_checksum_tell_them_apart(
    kinds: tuple[Replica, Answers, Answers],
) -> None:
    _, first, second = kinds
    assert first.tokens != second.tokens
    for before, after in zip(first.checksums, second.checksums, strict=True):
        changed = {name for name in before if before[name] != after[name]}
        assert {name for name in before if name.endswith("()")} <= changed
        assert "error" not in before


@pytest.mark.parametrize("settings", [{"transport": "shm"}, SMALL_SLOTS, {"transport": "gloo"}], ids=str)
def test_given_an_update_there_and_back_then_nothing_tells_it_from_an_engine_started_so(
    kinds: tuple[Replica, Answers, Answers], settings: dict[str, str]
) -> None:
    replica, first, second = kinds
    done = update([replica], replica.checkpoint(2), "two", **settings)
    assert replica.answers() == second
    assert replica.version() == "two"
    assert done.problems == ()
    assert all(
        "found to be the same" in how or how.startswith("replayed") for how in done.update.apply_summary.values()
    )
    if settings == SMALL_SLOTS:
        slots = [ring.slot_bytes for ring in done.update.plan.rings]
        layer = 2 * 128 * (3 * 256)
        assert max(slots) < layer, "the slots were meant to hold less than a layer's fused parameters"
    update([replica], replica.checkpoint(1), "one", **settings)
    assert replica.answers() == first


def test_given_a_tied_head_that_a_version_brings_too_then_it_is_taken_if_it_is_the_same_and_else_refused(
    kinds: tuple[Replica, Answers, Answers],
) -> None:
    """By the recorded loader, through shared memory, and through slots that split the embedding."""
    replica, first, second = kinds
    if replica.family != "tied":
        pytest.skip("its head has a weight of its own")
    weights = load_file(replica.checkpoint(2) / "model.safetensors")
    with_head = {**weights, HEAD: weights[EMBEDDING].clone()}
    other = {**weights, HEAD: weights[EMBEDDING] + 1}
    alone = {name: tensor for name, tensor in other.items() if name != EMBEDDING}
    each: list[dict[str, Any]] = [{"transport": "shm"}, SMALL_SLOTS]
    for settings in each:
        bring([replica], with_head, "with head", **settings)
        assert replica.answers() == second
        update([replica], replica.checkpoint(1), "one", **settings)
        assert replica.answers() == first
    for tensors, said in ((other, rf"{HEAD}.* different values"), (alone, rf"lacks tensor {EMBEDDING}")):
        with pytest.raises(UpdateAbortedError, match=said):
            bring([replica], tensors, "spoilt")
    assert replica.answers() == first


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.alone)])
def test_given_vllms_own_weight_transfer_then_an_update_through_it_does_the_same(started: Started, ranks: int) -> None:
    arguments, environment = ((), {CORES: "auto"}) if ranks == 1 else (TWO_RANKS, TWO_CORES)
    reference = started.start("qwen3", 2, arguments, environment)
    native = started.start("qwen3", 1, arguments, environment, way_in=NATIVE).wait()
    second = reference.wait().tokens()
    started.stop(reference)
    first = native.tokens()
    assert first != second
    for pause, transport in (("keep", "shm"), ("wait", "gloo"), ("abort", "shm")):
        done = update([native], native.checkpoint(2), f"two by {transport}", pause=pause, transport=transport)
        assert native.tokens() == second
        assert native.version() == f"two by {transport}"
        assert done.problems == ()
        update([native], native.checkpoint(1), "one", pause=pause, transport=transport)
        assert native.tokens() == first
    pause_and_die(native)
    assert update([native], native.checkpoint(2), "after a leader that has begun and died").problems == ()
    assert native.tokens() == second
    started.stop(native)
