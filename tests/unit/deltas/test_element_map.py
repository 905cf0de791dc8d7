"""Elements are followed to where a loader puts them: a delta leaves the bytes that a replay of the version leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_transport.deltas import ElementMap, HostExchange, encode, locate_on_host
from ckpt_transport.errors import DeltaRefusedError
from ckpt_transport.memory import ElementCopy, StridedBytes
from ckpt_transport.planning import Carrier, PlacedTensor, TensorSpec
from ckpt_transport.replay import Recording, record
from ckpt_transport.replay.divided_layout import DividedLayout
from tests.deltas import Tensors, delta_of
from tests.unit.recorded import replay, same, scramble, specs_of, state
from tests.unit.replay.test_slicings import Slicing, slicings

Pairs = Iterable[tuple[str, torch.Tensor]]
CPU = torch.device("cpu")


def other_bits(tensors: Tensors, share: float, seed: int) -> dict[str, torch.Tensor]:
    """The same tensors with another bit in some of their elements."""
    random = torch.Generator().manual_seed(seed)
    new = {name: tensor.clone() for name, tensor in tensors.items()}
    for tensor in new.values():
        raw = tensor.view(-1).view(torch.uint8).view(-1, tensor.itemsize)
        raw[torch.rand(len(raw), generator=random) < share, 0] ^= 1
    return new


def follows(
    module: torch.nn.Module, load: Callable[[Pairs], None], old: Tensors, new: Tensors, range_bytes: int
) -> Recording:
    """Replay both versions; then bring what differs to the first, and take it back."""
    scramble(module)
    recording = record(module, load, specs_of(old))
    with torch.no_grad():
        replay(recording, module, old)
        before = state(module)
        replay(recording, module, new)
        after = state(module)
        replay(recording, module, old)
    divided = DividedLayout(recording.layout, {})
    assert divided.refusal == ""
    assert not divided.modules
    elements = divided.elements
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    bases = np.array([named[name].data_ptr() for name in elements.targets])
    delta, brought = delta_of("old", old, new, range_bytes)
    known = ElementMap(delta.tensors, recording.layout.sources, elements.copies, CPU)
    exchanges = [HostExchange(locate_on_host([each], brought, known, bases)) for each in delta.carriers]
    for expected in (after, before):
        for exchange in exchanges:
            exchange.exchange()
        assert same(expected, state(module)) == []
    return recording


@settings(max_examples=40, deadline=None)
@given(
    st.lists(slicings, min_size=1, max_size=6),
    st.sampled_from([0.01, 0.3, 1.0]),
    st.sampled_from([256, 1024, 1 << 20]),
    st.integers(0, 99),
)
def test_given_any_slicing_then_a_delta_leaves_what_a_replay_of_all_leaves(
    plans: list[Slicing], share: float, range_bytes: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors, module, spans = {}, torch.nn.Module(), []
    sizes: dict[torch.dtype, int] = {}
    for number, plan in enumerate(plans):
        values = torch.randn(plan.rows, plan.columns, generator=generator) * 20
        tensors[f"t{number}"] = values.to(plan.dtype)
        spans.append(sizes.get(plan.dtype, 0))
        sizes[plan.dtype] = spans[-1] + plan.kept * (plan.rows if plan.by_column else plan.columns)
    for dtype, size in sizes.items():
        fused = torch.nn.Parameter(torch.zeros(size, dtype=dtype), requires_grad=False)
        module.register_parameter(str(dtype).replace(".", "_"), fused)

    def load(pairs: Pairs) -> None:
        for name, tensor in pairs:
            number = int(name[1:])
            plan = plans[number]
            part = tensor.narrow(int(plan.by_column), plan.first, plan.kept)
            part = part.t() if plan.transposed else part
            fused = module.get_parameter(str(plan.dtype).replace(".", "_"))
            fused.data[spans[number] : spans[number] + part.numel()].view(part.shape).copy_(part)

    follows(module, load, tensors, other_bits(tensors, share, seed), range_bytes)


# -- loaders as they are met ----------------------------------------------------------------------------------------


def empty(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16), requires_grad=False)


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.experts = empty(8, 6), empty(8, 6), empty(3, 6, 8)
        self.scales, self.also = empty(5, 4), empty(6, 16)


def interleaved(layer: Layer, tensor: torch.Tensor) -> None:
    """Gate and up come as every other column of one tensor."""
    layer.gate.data.copy_(tensor[:, ::2].t())
    layer.up.data.copy_(tensor[:, 1::2].t())


def stacked(layer: Layer, tensor: torch.Tensor) -> None:
    """Experts come as one tensor, of which a rank has some rows of each."""
    for expert in range(3):
        layer.experts.data[expert].copy_(tensor[2 * expert : 2 * expert + 6, 8:16])


def repeated(layer: Layer, tensor: torch.Tensor) -> None:
    """One row of scales is for all."""
    layer.scales.data.copy_(tensor[1, :4].expand(5, 4))


def tied(layer: Layer, tensor: torch.Tensor) -> None:
    """A tensor goes to two places, in two forms."""
    layer.also.data.copy_(tensor)
    layer.up.data.copy_(tensor.view(12, 8)[:6].t())


@pytest.mark.parametrize("act", [interleaved, stacked, repeated, tied])
@pytest.mark.parametrize("share", [0.05, 1.0])
def test_given_a_loader_then_a_delta_leaves_what_a_replay_of_all_leaves(
    act: Callable[[Layer, torch.Tensor], None], share: float
) -> None:
    layer = Layer()
    shape = {"interleaved": (6, 16), "stacked": (10, 16), "repeated": (3, 6), "tied": (6, 16)}[act.__name__]
    old = {"one": torch.randn(shape).bfloat16(), "two": torch.randn(3).bfloat16()}

    def load(pairs: Pairs) -> None:
        for name, tensor in pairs:
            if name == "one":
                act(layer, tensor)

    follows(layer, load, old, other_bits(old, share, 3), 64)


def test_given_a_loader_that_converts_then_the_tensor_is_named() -> None:
    layer = Layer()
    old = {"one": torch.randn(5, 4)}

    def load(pairs: Pairs) -> None:
        for _, tensor in pairs:
            layer.scales.data.copy_(tensor)

    recording = record(layer, load, specs_of(old))
    assert DividedLayout(recording.layout, {}).refusal == "the loader converts one to BF16"


def test_given_a_loader_that_computes_then_the_tensor_is_named() -> None:
    layer = Layer()
    old = {"one": torch.randn(5, 4).bfloat16()}

    def load(pairs: Pairs) -> None:
        for _, tensor in pairs:
            layer.scales.data.copy_(tensor.exp())

    recording = record(layer, load, specs_of(old))
    assert DividedLayout(recording.layout, {}).refusal == "the loader computes scales of one"


# -- what cannot be followed, and parts -----------------------------------------------------------------------------

SPEC = TensorSpec("one", "BF16", (4, 8))


def mapped(copies: list[ElementCopy], *placed: PlacedTensor) -> ElementMap:
    return ElementMap(placed or [PlacedTensor(SPEC, 0, 0, 64)], [SPEC], StridedBytes.of(copies), CPU)


def test_given_a_tensor_that_is_not_served_then_it_is_named() -> None:
    other = PlacedTensor(TensorSpec("one", "BF16", (4, 9)), 0, 0, 72)
    with pytest.raises(DeltaRefusedError, match=r"one \(BF16 \[4, 9\]\) is not a tensor of the version"):
        mapped([], other)


def test_given_rows_that_are_read_over_each_other_then_the_tensor_is_named() -> None:
    windows = ElementCopy(0, 0, 0, 0, 2, (3, 4), (4, 2), (8, 2))
    with pytest.raises(DeltaRefusedError, match="reads one in a way in which its elements cannot be followed"):
        mapped([windows])


def test_given_an_element_that_goes_to_very_many_places_then_the_tensor_is_named() -> None:
    with pytest.raises(DeltaRefusedError, match="one goes to more than 1024 places"):
        mapped([ElementCopy(0, 0, 0, 0, 2, (2000, 1), (0, 2), (2, 2))])


def test_given_a_tensor_in_two_parts_then_each_element_is_found_where_its_part_lies() -> None:
    known = mapped(
        [ElementCopy(0, 0, 0, 100, 2, (32,), (2,), (2,))],
        PlacedTensor(SPEC, 0, 512, 24),
        PlacedTensor(SPEC, 1, 0, 40, start=24),
    )
    assert located(known, 0, 256, 512, [300, 512, 534, 536]) == {10_100: 2, 10_122: 3}
    assert located(known, 1, 0, 64, [0, 38, 40]) == {10_124: 1, 10_162: 2}
    assert located(known, 7, 0, 64, [0]) == {}


def test_given_many_tensors_that_lie_here_in_part_when_all_has_changed_then_only_what_lies_here_is_found() -> None:
    specs = [TensorSpec(f"t{number}", "BF16", (4, 8)) for number in range(8)]
    placed = [PlacedTensor(spec, 0, 64 * number + 64, 32, start=24) for number, spec in enumerate(specs)]
    copies = [ElementCopy(number, 0, 0, 100 * number, 2, (32,), (2,), (2,)) for number in range(8)]
    known = ElementMap(placed, specs, StridedBytes.of(copies), CPU)
    expected = [10_000 + 100 * number + byte for number in range(8) for byte in range(24, 56, 2)]
    assert sorted(located(known, 0, 0, 640, list(range(0, 640, 2)))) == expected


def located(known: ElementMap, extent: int, offset: int, nbytes: int, positions: list[int]) -> dict[int, int]:
    """Where elements of a range go that become 1, 2, and so on."""
    base = torch.zeros(nbytes, dtype=torch.uint8)
    new = base.clone()
    new.view(torch.int16)[(torch.tensor(positions) - offset) // 2] = torch.arange(1, len(positions) + 1).short()
    encoded = encode(base, new, 2)
    carrier = Carrier("a", extent, offset, nbytes, 2, encoded.form, encoded.count)
    parts = locate_on_host([carrier], {"a": encoded.raw}, known, np.array([10_000]))
    pairs = (zip(part.addresses.tolist(), part.values.tolist(), strict=True) for part in parts)
    return dict(chain.from_iterable(pairs))
