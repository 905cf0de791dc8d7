"""Tensors that go whole and tensors that are compared have no range in common, however they lie."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.deltas import CopiedBytes, cut, find_what_is_sent
from ckpt_transport.memory import Buffer
from ckpt_transport.planning import DeltaForm, PlacedTensor, TensorSpec

NBYTES = {"U8": 1, "BF16": 2, "F32": 4}
placements = st.lists(
    st.tuples(st.sampled_from(sorted(NBYTES)), st.integers(0, 70), st.integers(0, 3), st.booleans()), max_size=8
)


def placed(*tensors: tuple[str, int, int]) -> tuple[PlacedTensor, ...]:
    """Tensors of a type and so many elements, one behind the other with so many times eight bytes between them."""
    found, at = [], 0
    for number, (dtype, count, gap) in enumerate(tensors):
        nbytes = count * NBYTES[dtype]
        found.append(PlacedTensor(TensorSpec(str(number), dtype, (count,)), 0, at, nbytes))
        at += -(-nbytes // 8) * 8 + 8 * gap
    return tuple(found)


def names(tensors: tuple[PlacedTensor, ...], *which: int) -> set[str]:
    return {tensors[number].spec.name for number in which}


def no_check() -> None:
    pass


@given(placements, st.sampled_from([64, 100, 1 << 20]))
def test_given_any_tensors_then_each_byte_is_in_one_range_of_its_kind(
    tensors: list[tuple[str, int, int, bool]], most: int
) -> None:
    version = placed(*(tensor[:3] for tensor in tensors))
    whole = {str(number) for number, tensor in enumerate(tensors) if tensor[3]}
    found = cut(version, most, whole)
    held = torch.zeros(1 << 14, dtype=torch.uint8)
    for kind, ranges in ((1, found.compared), (2, found.whole)):
        for each in ranges:
            assert each.offset % each.unit == each.nbytes % each.unit == 0
            part = held[each.offset : each.offset + each.nbytes]
            assert not part.any()
            part.fill_(kind)
    for tensor in version:
        kind = 2 if tensor.spec.name in whole else 1
        assert (held[tensor.offset : tensor.offset + tensor.nbytes] == kind).all()


def test_given_a_tensor_of_which_another_name_goes_whole_then_it_goes_whole_once() -> None:
    one, *_ = placed(("BF16", 40, 0))
    tied = PlacedTensor(TensorSpec("tied", "BF16", (40,)), 0, one.offset, one.nbytes)
    found = cut((one, tied), 1 << 20, {"tied"})
    assert not found.compared
    assert [(each.offset, each.nbytes) for each in found.whole] == [(one.offset, one.nbytes)]


def test_given_tensors_that_have_not_changed_then_those_that_go_whole_are_sent() -> None:
    version = placed(("BF16", 1024, 0), ("F32", 64, 0), ("BF16", 1024, 0))
    raw = torch.arange(1 << 13).view(torch.uint8)
    ranges, base = cut(version, 1 << 20, names(version, 1)), Buffer(raw)
    found = find_what_is_sent(ranges, [base], [CopiedBytes(base)], 4096, no_check)
    assert found is not None
    (sent,) = (each for each in found.found if each.encoded.form is DeltaForm.WHOLE and each.range.nbytes == 256)
    assert torch.equal(sent.encoded.raw, raw[version[1].offset :][:256])
    assert found.elements == 2 * 1024 + 64


def test_given_tensors_that_go_whole_and_take_more_than_allowed_then_nothing_is_compared() -> None:
    version = placed(("BF16", 1024, 0), ("F32", 64, 0))
    raw = Buffer(torch.zeros(1 << 13, dtype=torch.uint8))
    ranges = cut(version, 1 << 20, names(version, 1))
    assert find_what_is_sent(ranges, [raw], [CopiedBytes(raw)], ranges.whole_nbytes - 1, no_check) is None
