"""Tensors that come one by one are copied as they come and not kept, into pools that the next version takes again."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport import TensorShard
from ckpt_transport.checkpoint import Store, Tensors
from ckpt_transport.checkpoint.stream import FIRST_NBYTES
from ckpt_transport.errors import CheckpointError, StoreError
from ckpt_transport.memory import MemoryKind
from tests.unit.safetensors_files import segments

BIG = FIRST_NBYTES // 4
"""Floats that fill the first pool."""


@given(st.lists(st.integers(0, 700), min_size=1, max_size=12))
def test_given_pairs_then_the_version_holds_what_a_mapping_of_them_would(lengths: list[int]) -> None:
    tensors = {f"t{number}": torch.randn(2, length)[:, ::2] for number, length in enumerate(lengths)}
    with Store(pool=MemoryKind.PRIVATE, threads=1) as store:
        stored = store.register("step-1", tensors=iter(tensors.items()))
        assert [tensor.spec.name for tensor in stored.manifest.tensors] == list(tensors)
        found = stored.tensors()
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_given_a_generator_then_no_tensor_is_alive_when_the_next_is_asked_for() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def gathered() -> Iterator[tuple[str, torch.Tensor]]:
        for number in range(5):
            assert not any(each() is not None for each in alive)
            tensor = torch.full((100,), float(number))
            alive.append(weakref.ref(tensor))
            yield f"t{number}", tensor
            del tensor

    with Store(threads=1) as store:
        found = store.register("step-1", tensors=gathered()).tensors()
        assert [float(tensor[0]) for tensor in found.values()] == [0, 1, 2, 3, 4]


def test_given_more_than_a_pool_holds_then_pools_grow_and_the_next_version_takes_the_same() -> None:
    def gathered(value: float) -> Iterator[tuple[str, torch.Tensor]]:
        for number, length in enumerate([BIG // 2, BIG, 3 * BIG, 10]):
            yield f"t{number}", torch.full((length,), value)

    with Store() as store:
        stored = store.register("step-1", tensors=gathered(1.0))
        made = segments()
        assert [extent.nbytes for extent in stored.manifest.extents] == [4 * BIG, 4 * BIG, 12 * BIG, 20 * BIG]
        assert [tensor.extent for tensor in stored.manifest.tensors] == [0, 1, 2, 3]
        store.unregister("step-1")
        found = store.register("step-2", tensors=gathered(2.0)).tensors()
        assert segments() == made
        assert all(tensor.eq(2.0).all() for tensor in found.values())
        store.unregister("step-2")
        store.register("step-3", tensors={"small": torch.zeros(3)})
        assert len(segments()) == 1


def test_given_a_generator_that_fails_half_way_then_nothing_is_lost() -> None:
    def failing() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.zeros(2 * BIG)
        yield "b", torch.zeros(2 * BIG)
        raise RuntimeError("the gather has failed")

    with Store() as store:
        store.register("step-1", tensors={"a": torch.ones(3)})
        before = segments()
        with pytest.raises(RuntimeError, match="the gather has failed"):
            store.register("step-2", tensors=failing())
        assert segments() == before
        assert store.get("step-1").tensors()["a"].eq(1).all()
        with pytest.raises(StoreError):
            store.get("step-2")
        store.register("step-2", tensors=[("a", torch.zeros(3))])


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ([("a", torch.zeros(1)), ("a", torch.zeros(1))], "tensor 'a' comes twice"),
        ([("a", torch.zeros(1)), torch.zeros(2)], "item 1 of the tensors is of type Tensor and not a pair"),
        ([("a", 3)], "'a' is of type int and not a tensor"),
        ([], "at least one tensor"),
    ],
)
def test_given_what_is_no_pair_of_name_and_tensor_then_it_is_named(tensors: object, reason: str) -> None:
    with Store(threads=1) as store:
        with pytest.raises(CheckpointError, match=reason):
            store.register("step-1", tensors=tensors)  # type: ignore[arg-type]
        assert not segments()


def test_given_parts_one_by_one_then_they_are_placed_as_those_of_a_mapping() -> None:
    whole = torch.arange(12.0).reshape(4, 3)
    tensors: Tensors = {"cut": TensorShard(whole[1:3, :2], (4, 3), (1, 0)), "whole": whole}
    with Store(pool=MemoryKind.PRIVATE, world_size=2, threads=1) as store:
        pairs = store.register("pairs", tensors=iter(tensors.items()), replicated=True).manifest
        mapping = store.register("mapping", tensors=tensors, replicated=True).manifest
        assert pairs.tensors == mapping.tensors
        assert pairs.replicated == mapping.replicated == ("whole",)


def test_given_who_is_told_then_all_that_has_come_is_all_there_is() -> None:
    said: list[tuple[int, int]] = []
    with Store(threads=1) as store:
        pairs = [("a", torch.zeros(4)), ("b", torch.zeros(2))]
        store.register("step-1", tensors=pairs, progress=lambda *each: said.append(each))
    assert said == [(0, 0), (16, 16), (24, 24)]
