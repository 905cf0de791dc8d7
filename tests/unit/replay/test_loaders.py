"""Given a loader that behaves, when it is recorded, its replay leaves the same bytes; others are refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from ckpt_transport.errors import RecordingError
from ckpt_transport.replay import OwnerKind, record
from tests.unit.recorded import Tensors, replays_as_it_loads, same, specs_of, state

Pairs = Iterable[tuple[str, torch.Tensor]]
ROWS, COLUMNS = 12, 8


class Layer(torch.nn.Module):
    """Parameters of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = torch.nn.Parameter(torch.zeros(3 * ROWS, COLUMNS), requires_grad=False)
        self.experts = torch.nn.Parameter(torch.zeros(5, 2 * ROWS, COLUMNS, dtype=torch.bfloat16), requires_grad=False)
        self.padded = torch.nn.Parameter(torch.zeros(ROWS + 4, COLUMNS), requires_grad=False)
        self.scale = torch.nn.Parameter(torch.zeros(COLUMNS), requires_grad=False)
        self.register_buffer("steps", torch.zeros(3))


def checkpoint(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


MATRIX = checkpoint(q=(ROWS, COLUMNS), k=(ROWS, COLUMNS), v=(ROWS, COLUMNS))


def by(layer: Layer, act: Callable[[Layer, str, torch.Tensor], None]) -> Callable[[Pairs], None]:
    def load(pairs: Pairs) -> None:
        for name, tensor in pairs:
            act(layer, name, tensor)

    return load


def place(layer: Layer, name: str) -> torch.Tensor:
    return layer.fused.data.narrow(0, "qkv".index(name) * ROWS, ROWS)


# -- loaders that are replayed exactly ------------------------------------------------------------------------------


def fuses(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).copy_(tensor)


def assigns(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    start = "qkv".index(name) * ROWS
    layer.fused.data[start : start + ROWS] = tensor


def transposes(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).view(COLUMNS, ROWS).copy_(tensor.t())


def transposes_through_a_copy(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).view(COLUMNS, ROWS).copy_(tensor.t().contiguous())


def exponentiates(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).copy_(-torch.exp(tensor.float()) + 1)


def changes_what_it_loaded(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).copy_(tensor)
    place(layer, name).neg_().mul_(0.5)


def rewrites_what_it_loaded(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).copy_(tensor)
    place(layer, name).copy_(torch.exp(place(layer, name)))


def loads_through_a_temporary(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    room = torch.empty(COLUMNS, ROWS)
    room.copy_(tensor.t())
    room[0].mul_(3)
    place(layer, name).copy_(room.t())


def gathers_rows(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    order = torch.arange(ROWS - 1, -1, -1)
    place(layer, name).copy_(tensor.index_select(0, order))


def looks_at_shapes(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    half = tensor.shape[0] // 2
    for part in range(2):
        place(layer, name)[part * half : (part + 1) * half].copy_(tensor[part * half : (part + 1) * half])


def looks_at_a_buffer(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    if layer.get_buffer("steps")[0].item() == 0:
        place(layer, name).copy_(tensor)


def reads_numpy_views(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).copy_(torch.from_numpy(tensor.numpy()))


def computes_what_nobody_uses(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    tensor.sum()
    place(layer, name).copy_(tensor)


@pytest.mark.parametrize(
    "act",
    [
        fuses, assigns, transposes, transposes_through_a_copy, exponentiates, changes_what_it_loaded,
        rewrites_what_it_loaded, loads_through_a_temporary, gathers_rows, looks_at_shapes, looks_at_a_buffer,
        reads_numpy_views, computes_what_nobody_uses,
    ],
)  # fmt: skip
def test_given_a_loader_that_can_be_understood_then_its_replay_leaves_the_same_bytes(act: Any) -> None:
    layer = Layer()
    recording = replays_as_it_loads(layer, by(layer, act), MATRIX, (1 << 20, 1024, 256))
    left = {recording.layout.targets[gap.target].name: gap.reason for gap in recording.layout.gaps}
    assert "fused" not in left
    assert left["scale"] == "the loader has nothing for it"
    assert left["steps"] == "a buffer that is not loaded"


def test_given_a_loader_that_joins_three_tensors_then_the_replay_waits_for_all_of_them() -> None:
    layer = Layer()

    def load(pairs: Pairs) -> None:
        pending: dict[str, torch.Tensor] = {}
        for name, tensor in pairs:
            pending[name] = tensor
            if len(pending) == 3:
                layer.fused.data.copy_(torch.cat([pending[each] for each in "qkv"]))

    recording = replays_as_it_loads(layer, load, MATRIX, (1 << 20, 512))
    (group,) = recording.layout.op_groups
    assert group.sources == (0, 1, 2)


def test_given_experts_then_types_are_converted_and_all_copies_roll_into_one() -> None:
    layer = Layer()
    tensors = checkpoint(**{f"{e}.{part}": (ROWS, COLUMNS) for e in range(5) for part in ("gate", "up")})

    def load(pairs: Pairs) -> None:
        for name, tensor in pairs:
            expert, part = name.split(".")
            layer.experts.data[int(expert)].narrow(0, ROWS * (part == "up"), ROWS).copy_(tensor)

    recording = replays_as_it_loads(layer, load, tensors, (1 << 20, 1024, 512))
    assert len(recording.layout.copies) == 10


def test_given_padding_then_it_is_filled_where_the_loader_fills_it_and_named_where_it_does_not() -> None:
    layer = Layer()
    tensors = checkpoint(rows=(ROWS, COLUMNS), scale=(COLUMNS,))

    def fills(pairs: Pairs) -> None:
        for name, tensor in pairs:
            if name == "rows":
                layer.padded.data.fill_(2.5)
                layer.padded.data[:ROWS].copy_(tensor)
            else:
                layer.scale[0] = 4
                layer.scale[1:].data.copy_(tensor[1:])

    def leaves(pairs: Pairs) -> None:
        for name, tensor in pairs:
            if name == "rows":
                layer.padded.data[:ROWS].copy_(tensor)

    filled = replays_as_it_loads(layer, fills, tensors).layout
    assert {filled.targets[gap.target].name for gap in filled.gaps} == {"fused", "experts", "steps"}
    left = replays_as_it_loads(layer, leaves, tensors).layout
    (gap,) = (gap for gap in left.gaps if left.targets[gap.target].name == "padded")
    assert (gap.nbytes, gap.reason) == (4 * 4 * COLUMNS, "padding that the loader leaves alone")
    assert [left.sources[number].name for number in left.unread] == ["scale"]


def test_given_tied_weights_then_they_are_one_target_with_two_names() -> None:
    first, second = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    second.weight = first.weight

    def load(pairs: Pairs) -> None:
        for _, tensor in pairs:
            first.weight.data.copy_(tensor)

    layout = record(torch.nn.Sequential(first, second), load, specs_of(checkpoint(weight=(4, 4)))).layout
    (target,) = layout.targets
    assert (target.name, target.also) == ("0.weight", ("1.weight",))
    assert layout.gaps == ()
    assert not layout.refused


def test_given_parameters_on_the_meta_device_then_the_layout_is_the_same() -> None:
    """So a layout can be had without memory for the weights."""
    real, abstract = Layer(), Layer().to("meta")
    layouts = [record(layer, by(layer, fuses), specs_of(MATRIX)).layout for layer in (real, abstract)]
    assert layouts[0] == layouts[1]


# -- loaders that are refused, by name ------------------------------------------------------------------------------


def keeps_references(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    layer.__dict__.setdefault("kept", []).append(tensor)
    place(layer, name).copy_(tensor)


def keeps_views(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    layer.__dict__.setdefault("kept", []).append(tensor[1:])
    place(layer, name).copy_(tensor)


def lets_a_temporary_escape(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    layer.__dict__["escaped"] = doubled = tensor * 2
    place(layer, name).copy_(doubled)


def lets_a_part_of_a_temporary_escape(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    doubled = tensor * 2
    layer.__dict__["escaped"] = doubled[0]
    place(layer, name).copy_(doubled)


ELSEWHERE = torch.zeros(ROWS, COLUMNS)


def writes_elsewhere(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    ELSEWHERE.copy_(tensor)
    place(layer, name).copy_(tensor)


def draws_random_numbers(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).copy_(tensor + torch.rand(ROWS, COLUMNS))


def initialises_at_random(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).copy_(tensor)
    layer.scale.data.normal_()


def drops_out(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).copy_(torch.nn.functional.dropout(tensor, 0.5))


def rebinds_a_parameter(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    layer.scale = torch.nn.Parameter(tensor[0].clone(), requires_grad=False)
    place(layer, name).copy_(tensor)


def rebinds_its_data(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    layer.scale.data = tensor[0]
    place(layer, name).copy_(tensor)


def writes_twice(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, "q").copy_(tensor)


def fills_what_it_loaded(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).copy_(tensor)
    place(layer, name)[0].zero_()


def branches_on_values(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).copy_(tensor if tensor[0, 0] >= 0 else -tensor)


def compares_values(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    if not torch.equal(tensor, torch.ones_like(tensor)):
        place(layer, name).copy_(tensor)


def scales_by_a_number_it_read(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).copy_(tensor * tensor.max().item())


def accumulates(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).add_(tensor)


def averages_with_the_old_value(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).copy_((place(layer, name) + tensor) / 2)


def branches_on_the_old_value(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    if place(layer, name).sum() != 12345:
        place(layer, name).copy_(tensor)


def copies_numpy_arrays(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).copy_(torch.from_numpy(tensor.numpy() * 2))


def makes_tensors_of_lists(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).copy_(torch.tensor(tensor.tolist()))


def overwrites_what_it_is_given(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    tensor.neg_()
    place(layer, name).copy_(tensor)


def multiplies_matrices(layer: Layer, name: str, tensor: torch.Tensor) -> None:
    place(layer, name).copy_(tensor @ torch.eye(COLUMNS))


REFUSED: list[tuple[Callable[[Layer, str, torch.Tensor], None], str]] = [
    (keeps_references, "q: is kept by the loader after it has returned"),
    (keeps_views, "q: is kept by the loader after it has returned"),
    (lets_a_temporary_escape, "v: is in something that the loader keeps"),
    (lets_a_part_of_a_temporary_escape, "v: is in something that the loader keeps"),
    (writes_elsewhere, "q: is written to a tensor that is neither a parameter nor a buffer"),
    (draws_random_numbers, "fused: gets random numbers from aten.rand.default"),
    (initialises_at_random, "scale: gets random numbers from aten.normal_.default"),
    (drops_out, "fused: gets random numbers from"),
    (rebinds_a_parameter, "scale: is bound to another tensor by the loader"),
    (rebinds_its_data, "scale: is bound to another tensor by the loader"),
    (writes_twice, "fused: is written more than once, by "),
    (fills_what_it_loaded, "fused: is filled with a constant after it was loaded"),
    (branches_on_values, "q: is looked at by the loader"),
    (compares_values, "q: is looked at by the loader"),
    (scales_by_a_number_it_read, "q: goes through aten.max.default, which is not understood"),
    (accumulates, "fused: is made with the old value of fused"),
    (averages_with_the_old_value, "fused: is made with the old value of fused"),
    (branches_on_the_old_value, "fused: is looked at by the loader before it is loaded"),
    (copies_numpy_arrays, "fused: is made with a tensor of unknown origin"),
    (makes_tensors_of_lists, "fused: is made with a tensor of unknown origin"),
    (overwrites_what_it_is_given, "q: is overwritten by the loader itself"),
    (multiplies_matrices, "fused: goes through aten.mm.default, which is not understood"),
]


@pytest.mark.parametrize(("act", "reason"), REFUSED, ids=[act.__name__ for act, _ in REFUSED])
def test_given_a_loader_that_cannot_be_replayed_then_it_is_refused_by_name_and_the_module_is_as_it_was(
    act: Any, reason: str
) -> None:
    layer = Layer()
    before, bound = state(layer), dict(layer.named_parameters())
    layout = record(layer, by(layer, act), specs_of(MATRIX)).layout
    assert reason in layout.why(limit=99)
    assert {id(tensor) for tensor in layer.parameters()} == {id(tensor) for tensor in bound.values()}
    assert same(before, state(layer)) == []
    refused = set(layout.refused_of(OwnerKind.SOURCE))
    assert refused.isdisjoint(copy.source for copy in layout.copies)
    assert not layout.op_groups


def test_given_a_loader_that_counts_what_it_is_given_then_a_second_recording_finds_it_out() -> None:
    layer, count = Layer(), iter(range(100))

    def load(pairs: Pairs) -> None:
        for _, tensor in pairs:
            layer.experts.data[next(count) % 5, :ROWS].copy_(tensor)

    with pytest.raises(RecordingError, match="does not do the same each time"):
        record(layer, load, specs_of(MATRIX))


def test_given_a_loader_that_counts_to_the_end_of_each_version_then_it_is_replayed() -> None:
    layer, count = Layer(), iter(range(100))

    def load(pairs: Pairs) -> None:
        for _, tensor in pairs:
            place(layer, "qkv"[next(count) % 3]).copy_(tensor)

    replays_as_it_loads(layer, load, MATRIX)


def test_given_a_loader_that_fails_on_stand_ins_then_the_error_says_how() -> None:
    def load(pairs: Pairs) -> None:
        raise KeyError("lm_head.weight")

    with pytest.raises(RecordingError, match=r"failed on fake tensors: KeyError: 'lm_head\.weight'"):
        record(Layer(), load, specs_of(MATRIX))


def test_given_only_one_tensor_that_is_not_understood_then_the_others_are_replayed() -> None:
    layer = Layer()
    tensors: Tensors = {**MATRIX, "scale": torch.ones(COLUMNS)}

    def load(pairs: Pairs) -> None:
        for name, tensor in pairs:
            if name == "scale":
                layer.scale.data.copy_(tensor * tensor[0].item())
            else:
                place(layer, name).copy_(tensor)

    layout = record(layer, load, specs_of(tensors)).layout
    assert len(layout.copies) == 3
    assert {layout.sources[index].name for index in layout.refused_of(OwnerKind.SOURCE)} == {"scale"}
