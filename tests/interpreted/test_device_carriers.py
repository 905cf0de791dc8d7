"""Kernels find where elements of carriers go as a host does, and refuse what it refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ckpt_transport.deltas import ElementMap, device_carriers, encode, locate_on_device, of_one_range
from ckpt_transport.deltas.sections import BLOCK_UNITS, sections
from ckpt_transport.errors import CheckpointError, PlanMismatchError
from ckpt_transport.memory import ElementCopy, StridedBytes
from ckpt_transport.planning import Carrier, DeltaForm, PlacedTensor, TensorSpec
from tests.located import BASES, Groups, Raw, Told, by_kernels, carried_of, loaded, on_host
from tests.unit.deltas.test_host_carriers import CPU, HOWS, carrying, mapped


def refusal(locate: Callable[[Groups, Raw], Told], groups: Groups, raw: Raw) -> str:
    """Why carriers are refused; empty when they are not."""
    try:
        locate(groups, raw)
    except (CheckpointError, PlanMismatchError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@settings(max_examples=30)
@given(
    tensors=st.lists(
        st.tuples(st.integers(1, 900), st.lists(st.sampled_from(HOWS), min_size=1, max_size=2)), min_size=1, max_size=4
    ),
    share=st.sampled_from([0.0002, 0.03, 0.3, 1]),
    units=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=2, unique=True),
    most=st.sampled_from([4096, 200_000, 1 << 30]),
    shift=st.sampled_from([0, 1]),
    seed=st.integers(0, 99),
)
def test_given_any_loader_then_kernels_locate_what_the_host_locates(
    tensors: list[tuple[int, list[str]]], share: float, units: list[int], most: int, shift: int, seed: int
) -> None:
    groups, raw = loaded(tensors, units, share, most, shift, seed)
    assert by_kernels(groups, raw) == on_host(groups, raw)


def test_given_elements_that_nobody_serves_then_they_are_checked_and_are_nowhere() -> None:
    spec = TensorSpec("one", "BF16", (4, 8))
    copies = StridedBytes.of([ElementCopy(0, 0, 0, 100, 2, (32,), (2,), (2,))])
    known = ElementMap([PlacedTensor(spec, 1, 64, 64)], [spec], copies, CPU)
    encoded = encode(torch.zeros(256, dtype=torch.uint8), torch.ones(256, dtype=torch.uint8), 2)
    for extent in (0, 1, 7):
        groups = [(known, [Carrier("a", extent, 0, 256, 2, encoded.form, encoded.count)])]
        assert by_kernels(groups, {"a": encoded.raw}) == on_host(groups, {"a": encoded.raw})


@pytest.mark.parametrize("window", [device_carriers.WINDOW_BITS, 1 << 17])
@pytest.mark.parametrize(("low", "every"), [(0, 99), (1, 2), (BLOCK_UNITS + 5, 99)])
@pytest.mark.parametrize("twice", [False, True])
def test_given_carriers_of_one_range_then_an_element_that_two_have_is_refused(
    window: int, low: int, every: int, twice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_carriers, "WINDOW_BITS", window)
    units = 5 * BLOCK_UNITS
    places = list(range(BLOCK_UNITS + 7, units - 5, every))
    one, other = carrying("a", low, units, places), carrying("b", 0, units, [each + 1 for each in places])
    if twice:
        other = carrying("b", 0, units, sorted({*(each + 1 for each in places), places[-3]}))
    alone = carrying("c", 0, 50, [0, 1])
    raw = {"a": one[1], "b": other[1], "c": alone[1]}
    known = mapped(units)
    groups: Groups = [(mapped(50), [alone[0]]), (known, [one[0], other[0]])]
    why = refusal(by_kernels, groups, raw)
    assert why == refusal(on_host, groups, raw)
    assert why == ("PlanMismatchError: a and b carry one element twice" if twice else "")
    if not twice:
        expected = on_host(groups[1:], raw)
        assert by_kernels(groups[1:], raw) == expected
        assert len(expected) == 2 * len(places)


@given(
    share=st.sampled_from([0.01, 0.3, 1]),
    unit=st.sampled_from([1, 2, 4, 8]),
    at=st.integers(0, 1 << 20),
    by=st.integers(1, 255),
)
@settings(max_examples=60)
def test_given_one_byte_that_lies_then_kernels_refuse_it_where_the_host_does_and_in_its_words(
    share: float, unit: int, at: int, by: int
) -> None:
    units = BLOCK_UNITS + 9
    carriers, raw = carried_of(unit * units, 1 << 30, unit, share, torch.Generator().manual_seed(1), "a")
    (brought,) = raw.values()
    brought[at % min(len(brought), 4 * units) if share == 0.01 else at % len(brought)] ^= by
    groups = [(mapped(units * unit // 2), carriers)]
    why = refusal(by_kernels, groups, raw)
    assert why == refusal(on_host, groups, raw)
    if not why:
        assert by_kernels(groups, raw) == on_host(groups, raw)


@pytest.mark.parametrize("lie", [3, -1, BLOCK_UNITS + 1, 2**31 - 1])
def test_given_counts_that_do_not_add_up_then_no_place_is_read_beyond_what_is_there(lie: int) -> None:
    carrier, raw = carrying("a", 0, 3 * BLOCK_UNITS, [3, 4, BLOCK_UNITS, 3 * BLOCK_UNITS - 1])
    raw[:4].view(torch.int32).fill_(lie)
    also = msgspec.structs.replace(carrier, name="b")
    for group in ([carrier], [carrier, also]):
        why = refusal(by_kernels, [(mapped(3 * BLOCK_UNITS), group)], {"a": raw, "b": raw})
        assert "do not add up to its 4 elements" in why


def test_given_places_or_masks_that_lie_then_the_error_says_so() -> None:
    units = 3 * BLOCK_UNITS
    at = sections(DeltaForm.LIST, 2, units, 4).places
    for place, lie in ((0, 4), (0, 5)):
        carrier, raw = carrying("a", 0, units, [3, 4, BLOCK_UNITS, units - 1])
        raw[at:][2 * place :][:2].view(torch.int16).fill_(lie)
        assert f"do not ascend within its range of {units} elements" in refusal(
            by_kernels, [(mapped(units), [carrier])], {"a": raw}
        )
    for byte, lie in ((0, 0b0011), (0, 0b0), (12, 0b11000)):
        carrier, raw = carrying("a", 0, 100, list(range(0, 100, 2)))
        assert carrier.form is DeltaForm.MASK
        raw[byte] = lie
        assert "does not have 50 bits within its range of 100 elements" in refusal(
            by_kernels, [(mapped(100), [carrier])], {"a": raw}
        )
    claims = Carrier("a", 0, 0, 2000, 2, DeltaForm.WHOLE, 3)
    assert "whole, and claims 3" in refusal(by_kernels, [(mapped(1000), [claims])], {"a": raw})


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations of torch."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


WAITING = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "masked_select", "unique", "_unique2"}


def test_given_many_carriers_then_there_are_as_many_operations_and_waits_as_for_one() -> None:
    """Launches of kernels are not of torch: there are three. A list of numbers is read once."""
    units = 64
    found = []
    for many in (1, 50):
        spec = TensorSpec("one", "BF16", (units * many,))
        copies = StridedBytes.of([ElementCopy(0, 0, 0, 0, 2, (units * many,), (2,), (2,))])
        known = ElementMap([PlacedTensor(spec, 0, 0, spec.nbytes)], [spec], copies, CPU)
        made = [
            carrying(f"{number}", number * units, number * units + units, [number * units]) for number in range(many)
        ]
        groups = [(known, group) for group in of_one_range([carrier for carrier, _ in made])]
        raw = {carrier.name: each for carrier, each in made}
        bases = torch.tensor(BASES)
        with Operations() as operations:
            located = locate_on_device(groups, raw, bases)
        assert len(located[2].addresses) == many
        found.append(operations.counts)
    assert found[0] == found[1]
    assert not WAITING & set(found[0])
