"""Parts of tensors, as sharded trainers have them, are the bytes that torch says they are."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from ckpt_transport import Mapping, TensorShard, rules
from ckpt_transport.checkpoint import Store, parts_of
from ckpt_transport.checkpoint.dtensors import runs_of
from ckpt_transport.checkpoint.index_runs import strided_ranges
from ckpt_transport.checkpoint.placing import why_gathered_on_the_host
from ckpt_transport.errors import CheckpointError, StoreError
from ckpt_transport.memory import MemoryKind, StridedRange
from ckpt_transport.planning import Manifest, PlacedTensor, TensorSpec, run_by_run, spread

GiB = 1 << 30


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[int], list[int], list[Any]]:
    """A tensor's shape, a mesh and placements on it."""
    shape = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    mesh = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    dims = st.integers(0, len(shape) - 1)
    kinds = st.one_of(
        st.just(Replicate()),
        st.builds(Shard, dims),
        st.builds(lambda dim, pieces: _StridedShard(dim, split_factor=pieces), dims, st.integers(1, 3)),
    )
    return shape, mesh, [draw(kinds) for _ in mesh]


def cut_by_torch(shape: Sequence[int], mesh: Sequence[int], coordinate: Sequence[int], placements: Any) -> list[int]:
    """The elements that torch gives to one rank, by their numbers in the whole tensor."""
    elements = torch.arange(math.prod(shape)).view(*shape)
    for placement, ranks, own in zip(placements, mesh, coordinate, strict=True):
        if not isinstance(placement, Replicate):
            elements = placement._split_tensor(elements, ranks, with_padding=False)[0][own]
    return elements.flatten().tolist()


@checked(max_examples=300, deadline=None)
@given(layouts())
def test_given_placements_on_a_mesh_then_each_rank_has_the_bytes_that_torch_gives_it(
    layout: tuple[list[int], list[int], list[Any]],
) -> None:
    shape, mesh, placements = layout
    spec = TensorSpec("weight", "U8", tuple(shape))
    for coordinate in itertools.product(*map(range, mesh)):
        runs = runs_of(shape, mesh, coordinate, placements)
        found = [
            part.start + run * part.stride + byte
            for part in strided_ranges(spec, runs)
            for run in range(part.runs)
            for byte in range(part.nbytes)
        ]
        assert found == cut_by_torch(shape, mesh, coordinate, placements)


def manifests(*by_rank: Any, lend: bool = False, replicated: bool = False) -> list[Manifest]:
    """What each rank of a world says it holds."""
    found = []
    for rank, tensors in enumerate(by_rank):
        with Store(rank=rank, world_size=len(by_rank), pool=MemoryKind.PRIVATE, threads=1) as store:
            take = store.lend if lend else store.register
            found.append(take("v1", tensors=tensors, replicated=replicated).manifest)
    return found


def together(shards: Sequence[Manifest], *, whole: bool = False) -> Manifest:
    return spread("v1", shards, dict.fromkeys(range(len(shards)), 1.0), (), whole=whole)


def box(tensor: torch.Tensor, *slices: slice, replicated: bool = False) -> TensorShard:
    """That part of a tensor."""
    starts = [each.indices(size)[0] for each, size in zip(slices, tensor.shape, strict=True)]
    return TensorShard(tensor[slices].contiguous(), tensor.shape, starts, replicated)


WEIGHT = torch.arange(48, dtype=torch.float32).view(8, 6)
ALL = slice(None)


@pytest.mark.parametrize("lend", [False, True])
def test_given_boxes_of_rows_and_columns_then_together_they_are_the_tensor(lend: bool) -> None:
    corners = [box(WEIGHT, slice(0, 4), slice(0, 3)), box(WEIGHT, slice(4, 8), slice(3, 6))]
    shards = manifests(
        {"w": corners}, {"w": [box(WEIGHT, slice(0, 4), slice(3, 6)), box(WEIGHT, slice(4, 8), slice(0, 3))]}, lend=lend
    )
    made = together(shards)
    (order,) = made.ordered
    assert order.blocks == tuple(StridedRange(start, 12, 4, 24) for start in (0, 12, 96, 108)), "each box is one block"
    assert sorted((part.start, part.nbytes) for part in made.tensors) == [(start, 48) for start in range(0, 192, 48)]
    assert {made.extents[part.extent].owner for part in made.tensors} == {0, 1}


def test_given_a_box_then_its_bytes_are_in_the_pool_where_the_manifest_says() -> None:
    with Store(world_size=2, pool=MemoryKind.PRIVATE, threads=1) as store:
        stored = store.register("v1", tensors={"w": TensorShard(WEIGHT.T[1:3].T, WEIGHT.shape, (0, 1))})
        pool, whole = stored.buffers[0].tensor, WEIGHT.view(torch.uint8).flatten()
        (placed,) = stored.manifest.tensors
        assert placed.part == StridedRange(4, 8, 8, 24)
        for part in run_by_run([placed]):
            here = pool[part.offset : part.offset + part.nbytes]
            assert torch.equal(here, whole[part.start : part.start + part.nbytes])
        assert stored.manifest.nbytes == 8 * 2 * 4
        with pytest.raises(StoreError, match="parts of the tensors"):
            stored.tensors()


def test_given_bytes_that_no_rank_holds_then_they_and_those_who_hold_others_are_named() -> None:
    shards = manifests({"w": box(WEIGHT, slice(0, 3), ALL)}, {"w": box(WEIGHT, slice(5, 8), ALL)})
    said = (
        r"no source rank holds bytes 72 to 120 of tensor w \(F32 \[8, 6\]\), of which source ranks 0 and 1 hold others"
    )
    with pytest.raises(CheckpointError, match=said):
        together(shards)
    with pytest.raises(CheckpointError, match=r"bytes 72 to 192 of .*, of which source rank 0 holds others"):
        together(shards[:1])


def test_given_bytes_that_two_ranks_hold_then_they_must_say_that_these_are_equal() -> None:
    rows = slice(0, 5), ALL
    with pytest.raises(
        CheckpointError,
        match=r"bytes 96 to 120 of tensor 'w' are held twice, by source ranks 0 and 1.* replicated=True on all",
    ):
        together(manifests({"w": box(WEIGHT, *rows)}, {"w": box(WEIGHT, slice(4, 8), ALL)}))
    made = together(
        manifests({"w": box(WEIGHT, *rows, replicated=True)}, {"w": box(WEIGHT, slice(4, 8), ALL, replicated=True)})
    )
    assert sum(part.nbytes for part in made.tensors) == WEIGHT.nbytes


def test_given_whole_tensors_on_all_ranks_then_the_cure_for_that_comes_first() -> None:
    shards = manifests({"w": WEIGHT}, {"w": WEIGHT})
    said = (
        r"bytes 0 to 192 of tensor 'w' are held twice, .*; where they are, say replicated=True on all ranks that have"
    )
    with pytest.raises(CheckpointError, match=said):
        together(shards)


def test_given_a_rank_that_lends_a_part_twice_then_its_bytes_and_the_cure_are_named() -> None:
    part = box(WEIGHT, slice(0, 4), ALL)
    shards = manifests({"w": [part, part]}, {"w": box(WEIGHT, slice(4, 8), ALL)}, lend=True)
    with pytest.raises(
        CheckpointError, match=r"source rank 0 holds bytes 0 to 96 of tensor 'w' twice; .*replicated=True"
    ):
        together(shards)


def test_given_a_rank_with_two_equal_parts_that_overlap_then_each_byte_is_sent_once() -> None:
    parts = [box(WEIGHT, rows, ALL, replicated=True) for rows in (slice(0, 5), slice(3, 8))]
    for others in ([], [{"w": parts[0]}]):
        made = together(manifests({"w": parts}, *others))
        sent = sorted((part.start, part.start + part.nbytes) for part in made.tensors)
        assert [start for start, _ in sent] == [0, *(end for _, end in sent[:-1])]
        assert sent[-1][1] == WEIGHT.nbytes


def test_given_ranks_that_all_have_everything_then_each_sends_about_as_much() -> None:
    own = {f"layer.{number}": torch.full((64, 64), float(number)) for number in range(9)}
    made = together(manifests(own, own, own, replicated=True))
    sent = [0, 0, 0]
    for part in made.tensors:
        sent[made.extents[part.extent].owner] += part.nbytes
    assert sum(sent) == sum(tensor.nbytes for tensor in own.values())
    assert max(sent) < 1.1 * min(sent)


def test_given_shapes_that_differ_between_ranks_then_both_are_named() -> None:
    other = torch.zeros(8, 7)
    with pytest.raises(CheckpointError, match=r"ranks 0 and 1 and differs: w \(F32 \[8, 6\]\) and w \(F32 \[8, 7\]\)"):
        together(manifests({"w": box(WEIGHT, slice(0, 4), ALL)}, {"w": box(other, slice(4, 8), ALL)}))


def test_given_a_sink_that_takes_tensors_whole_then_parts_are_refused_with_the_call_that_gathers_them() -> None:
    shards = manifests({"w": box(WEIGHT, slice(0, 4), ALL)}, {"w": box(WEIGHT, slice(4, 8), ALL)})
    with pytest.raises(CheckpointError, match=r"rank 0 holds only bytes 0 to 96 of w .*give full_tensor\(\) of it"):
        together(shards, whole=True)


@pytest.mark.parametrize(
    ("shard", "said"),
    [
        (
            TensorShard(WEIGHT, (8, 6), (1, 0)),
            r"'w' has the shape \[8, 6\] at \[1, 0\], which does not lie in a tensor",
        ),
        (TensorShard(WEIGHT, (8, 6), (0,)), r"'w' has the shape \[8, 6\] at \[0\]"),
        (TensorShard(WEIGHT, (48,), (0, 0)), r"of shape \[48\]"),
        (
            TensorShard(torch.empty(1 << 17, 1, 1), (1 << 17, 2, 2), (0, 1, 1)),
            r"131,072 strided ranges of its bytes.*dimensions \[1, 2\]",
        ),
    ],
    ids=["outside", "few offsets", "other dimensions", "too fine"],
)
def test_given_a_shard_that_cannot_be_then_it_is_refused_by_name(shard: TensorShard, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        manifests({"w": shard}, {})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "None and not a tensor; leave it out"),
        (WEIGHT.numpy(), r"numpy.ndarray and not a tensor; give torch.from_numpy\(...\)"),
        ([1.0], "list and not a tensor; give a torch.Tensor"),
    ],
    ids=["None", "numpy", "list"],
)
@pytest.mark.parametrize("mapping", [None, Mapping.of(rules.Cast("BF16"))], ids=["as they are", "cast"])
def test_given_a_shard_without_a_tensor_then_it_is_refused_by_name(
    value: Any, said: str, mapping: Mapping | None
) -> None:
    shard = TensorShard(value, (8, 6), (0, 0))
    for shards in (shard, [box(WEIGHT, slice(0, 4), ALL), shard]):
        assert all(isinstance(part, torch.Tensor) for part in parts_of(shards))
        with Store(world_size=2) as store, pytest.raises(CheckpointError, match=f"a shard of 'w' is .*{said}"):
            store.register("v1", tensors={"w": shards}, mapping=mapping)
    with pytest.raises(CheckpointError, match=rf"the run of a tensor of shape \[8, 6\] is .*{said}"):
        TensorShard.of_run(value, (8, 6), 0)


def test_given_a_rank_with_nothing_then_it_holds_nothing_and_a_world_of_one_may_not() -> None:
    nothing = TensorShard(torch.empty(0, 6), (8, 6), (8, 0))
    made = together(manifests({"w": box(WEIGHT, ALL, ALL)}, {"w": nothing}))
    assert made.owners == (0,)
    with pytest.raises(CheckpointError, match="at least one tensor"):
        manifests({"w": nothing})


def test_given_tied_shards_then_their_names_are_known_to_be_one() -> None:
    shard = box(WEIGHT, slice(0, 4), ALL)
    (first, _) = manifests({"embed": shard, "lm_head": shard}, {})
    assert first.same == (("embed", "lm_head"),)


def test_given_a_tensor_with_a_misspelt_part_then_the_message_says_what_it_is() -> None:
    with pytest.raises(CheckpointError, match=re.escape("'w' is of type list and not a tensor")):
        manifests({"w": [WEIGHT, WEIGHT]}, {})


@given(shape=st.lists(st.integers(1, 5), max_size=4), ranks=st.integers(1, 5))
def test_given_runs_of_a_flattened_tensor_then_their_boxes_hold_each_element_once(shape: list[int], ranks: int) -> None:
    """ZeRO-3 gives each rank as many elements, and pads the last one's."""
    whole = torch.arange(1.0, 1.0 + torch.Size(shape).numel()).view(shape)
    length = -(-whole.numel() // ranks)
    padded = torch.cat([whole.reshape(-1), torch.full((length * ranks,), -1.0)])
    found = torch.zeros(shape)
    for rank in range(ranks):
        run = padded[rank * length : (rank + 1) * length]
        boxes = TensorShard.of_run(run, shape, rank * length)
        assert len(boxes) <= max(2 * len(shape) - 1, 1)
        for box in boxes:
            at = tuple(slice(o, o + s) for o, s in zip(box.offsets, box.tensor.shape, strict=True))
            found[at] += box.tensor
            assert box.tensor.numel() == 0 or box.tensor.data_ptr() >= run.data_ptr(), "nothing is copied"
    assert torch.equal(found, whole)


def test_given_columns_that_lie_beside_others_in_each_row_then_they_are_gathered_and_it_is_said_why() -> None:
    """Given a part that has every other column, then no two of its rows are at one distance of both."""
    runs = [[(0, 16)], [(0, 1), (2, 3)]]
    ranges = strided_ranges(TensorSpec("w", "U8", (16, 4)), runs)
    assert [part.start for part in ranges[:4]] == [0, 2, 4, 6]
    placed = [
        PlacedTensor(TensorSpec("w", "U8", (16, 4)), 0, number, 1, part.start) for number, part in enumerate(ranges)
    ]
    assert why_gathered_on_the_host(placed, 1).startswith("they are cut into 32 ranges of 1 bytes on average")
    assert not why_gathered_on_the_host(placed[:3], 1)
