"""On the host carriers are followed in blocks: what is written is what following each byte by itself gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_transport.deltas import (
    ElementMap,
    HostElements,
    HostExchange,
    each_once_on_host,
    encode,
    locate_on_host,
)
from ckpt_transport.deltas.sections import BLOCK_UNITS
from ckpt_transport.errors import CheckpointError, DeltaRefusedError, PlanMismatchError
from ckpt_transport.memory import ElementCopy, StridedBytes
from ckpt_transport.planning import Carrier, DeltaForm, PlacedTensor, TensorSpec
from tests.carried import elements_of

CPU = torch.device("cpu")
WIDTH = 96
WINDOW = 1 << 20


def placed(heights: Sequence[int]) -> list[PlacedTensor]:
    """Matrices of BF16 one behind the other, some with a gap before them."""
    found, at = [], 0
    for number, height in enumerate(heights):
        spec = TensorSpec(f"t{number}", "BF16", (height, WIDTH))
        found.append(PlacedTensor(spec, 0, at, spec.nbytes))
        at += spec.nbytes + 64 * (number % 3)
    return found


def copied(number: int, how: str, height: int, at: int) -> ElementCopy:
    """One way in which a loader takes a matrix into a target, where it lies from ``at`` on."""
    row = 2 * WIDTH
    match how:
        case "whole":
            return ElementCopy(number, 0, 0, at, 2, (height * WIDTH,), (2,), (2,))
        case "columns":
            return ElementCopy(number, 0, 62, at, 2, (height, 33), (row, 2), (66, 2))
        case "transposed":
            return ElementCopy(number, 0, 0, at, 2, (height, WIDTH), (row, 2), (2, 2 * height))
        case "by odd bytes":
            return ElementCopy(number, 0, 3, at, 1, (height, 70), (row, 1), (71, 1))
        case "in odd blocks":
            return ElementCopy(number, 0, 3, at, 1, (height, 5, 14), (row, 34, 1), (71, 14, 1))
        case "repeated":
            return ElementCopy(number, 0, 0, at, 2, (3, 40), (0, 2), (80, 2))
    raise AssertionError(how)


HOWS = ["whole", "columns", "transposed", "by odd bytes", "in odd blocks", "repeated"]


def places_of(copy: ElementCopy, start: int, nbytes: int) -> Iterator[np.ndarray]:
    """Where each byte of a version goes, or -1; once for each time that it is read.

    Args:
        copy: of a tensor that begins at byte ``start``.
        start: see above.
        nbytes: of the version.
    """
    steps = [np.arange(size) for size in (*copy.shape, copy.size)]
    read, write = (
        reduce(np.add.outer, [step * stride for step, stride in zip(steps, (*strides, 1), strict=True)])
        for strides in (copy.read_strides, copy.write_strides)
    )
    times = copy.shape[0] if copy.read_strides[0] == 0 else 1
    for reads, writes in zip(read.reshape(times, -1), write.reshape(times, -1), strict=True):
        to = np.full(nbytes, -1)
        to[start + copy.read + reads] = copy.write + writes
        yield to


def write_each(served: np.ndarray, to: np.ndarray, positions: np.ndarray, values: np.ndarray) -> None:
    """Write the elements of which all bytes go side by side; ``values`` has a row of bytes for each."""
    within = np.arange(values.shape[1])
    goes = to[positions[:, None] + within]
    there = (goes == goes[:, :1] + within).all(axis=1) & (goes[:, 0] >= 0)
    served[goes[there]] = values[there]


@settings(max_examples=60, deadline=None)
@given(
    tensors=st.lists(
        st.tuples(st.integers(1, 1500), st.lists(st.sampled_from(HOWS), min_size=1, max_size=2)), min_size=1, max_size=5
    ),
    share=st.sampled_from([0, 0.0002, 0.03, 0.3, 1]),
    unit=st.sampled_from([1, 2]),
    most=st.sampled_from([4096, 200_000, 1 << 30]),
    seed=st.integers(0, 99),
)
def test_given_any_loader_then_blocks_are_followed_as_single_elements_are(
    tensors: list[tuple[int, list[str]]], share: float, unit: int, most: int, seed: int
) -> None:
    version = placed([height for height, _ in tensors])
    nbytes = version[-1].offset + version[-1].nbytes
    copies, at = [], 1
    for number, (height, hows) in enumerate(tensors):
        for how in hows:
            copies.append(copied(number, how, height, at))
            at += 2 * WIDTH * max(height, 3)
    known = ElementMap(version, [each.spec for each in version], StridedBytes.of(copies), CPU)
    generator = torch.Generator().manual_seed(seed)
    base = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)
    new = base.clone()
    new.view(-1, unit)[torch.rand(nbytes // unit, generator=generator) < share, 0] ^= 5
    carriers, raw = [], {}
    for low in range(0, nbytes, most):
        encoded = encode(base[low : low + most], new[low : low + most], unit)
        if encoded.count:
            name = f"c{low}"
            length = min(most, nbytes - low)
            carriers.append(Carrier(name, 0, low, length, unit, encoded.form, encoded.count))
            raw[name] = encoded.raw
    served = torch.randint(0, 256, (at,), dtype=torch.uint8, generator=generator)
    before, other = served.clone(), served.clone()
    for copy in copies:
        for to in places_of(copy, version[copy.source].offset, nbytes):
            for each in carriers:
                places, values = elements_of(raw[each.name], each.form, unit, each.nbytes, each.count)
                write_each(other.numpy(), to, places * unit + each.offset, values.view(np.uint8).reshape(-1, unit))
    parts = [
        part for carrier in carriers for part in locate_on_host([carrier], raw, known, np.array([served.data_ptr()]))
    ]
    exchange = HostExchange(parts)
    exchange.exchange()
    assert torch.equal(served, other)
    for change in exchange.changes():
        offsets = torch.from_numpy(change.addresses - served.data_ptr())
        for byte in range(unit):
            assert torch.equal(served[offsets + byte], torch.from_numpy(change.new.view(np.uint8)[byte::unit].copy()))
            assert torch.equal(before[offsets + byte], torch.from_numpy(change.old.view(np.uint8)[byte::unit].copy()))
    exchange.exchange()
    assert torch.equal(served, before)


# -- several carriers of one range ----------------------------------------------------------------------------------


def mapped(units: int, device: torch.device = CPU) -> ElementMap:
    """One tensor of BF16 that is served as it is."""
    spec = TensorSpec("one", "BF16", (units,))
    copies = StridedBytes.of([ElementCopy(0, 0, 0, 0, 2, (units,), (2,), (2,))])
    return ElementMap([PlacedTensor(spec, 0, 0, spec.nbytes)], [spec], copies, device)


def carrying(name: str, low: int, high: int, places: Sequence[int]) -> tuple[Carrier, torch.Tensor]:
    """A carrier of some units of a range, which all become 1."""
    old = torch.zeros(high - low, dtype=torch.int16)
    new = old.clone()
    new[torch.tensor(places) - low] = 1
    encoded = encode(old.view(torch.uint8), new.view(torch.uint8), 2)
    return Carrier(name, 0, 2 * low, 2 * (high - low), 2, encoded.form, encoded.count), encoded.raw


@pytest.mark.parametrize("low", [0, 1, 77, BLOCK_UNITS])
@pytest.mark.parametrize("twice", [None, 100_000, WINDOW - 1, WINDOW, WINDOW + BLOCK_UNITS])
def test_given_carriers_of_one_range_then_an_element_that_two_have_is_refused(low: int, twice: int | None) -> None:
    units = WINDOW + 3 * BLOCK_UNITS
    every = list(range(BLOCK_UNITS, units - 5, 99))
    others = sorted({each + 1 for each in every} | ({twice} if twice else set()))
    one, other = carrying("a", low, units, every), carrying("b", 0, units, others)
    clash = bool(set(every) & set(others))
    if twice and not clash:
        one = carrying("a", low, units, sorted({*every, twice}))
        clash = True
    raw = {"a": one[1], "b": other[1]}
    served = torch.zeros(units, dtype=torch.int16)
    bases = np.array([served.data_ptr()])
    if clash:
        with pytest.raises(PlanMismatchError, match="a and b carry one element twice"):
            locate_on_host([one[0], other[0]], raw, mapped(units), bases)
        return
    HostExchange(locate_on_host([one[0], other[0]], raw, mapped(units), bases)).exchange()
    assert served.nonzero().squeeze(1).tolist() == sorted(every + others)


def test_given_bytes_that_lie_then_nothing_is_located() -> None:
    carrier, raw = carrying("a", 0, 1000, [3, 7, 500])
    raw[8] = 9
    with pytest.raises(CheckpointError, match="do not ascend"):
        locate_on_host([carrier], {"a": raw}, mapped(1000), np.array([1 << 20]))
    whole = Carrier("a", 0, 0, 2000, 2, DeltaForm.WHOLE, 3)
    with pytest.raises(CheckpointError, match="whole, and claims 3"):
        locate_on_host([whole], {"a": raw}, mapped(1000), np.array([1 << 20]))


# -- several sources -------------------------------------------------------------------------------------------------


def at(addresses: Sequence[int], values: Sequence[int], unit: int = 2) -> HostElements:
    return HostElements.at(np.array(addresses, np.int64), np.array(values, f"u{unit}"))


def told(parts: Sequence[HostElements]) -> list[tuple[int, int, int]]:
    return sorted(
        (address, part.values.itemsize, value)
        for part in parts
        for address, value in zip(part.addresses.tolist(), part.values.tolist(), strict=True)
    )


def test_given_replicas_then_only_those_that_lie_between_each_other_are_compared() -> None:
    apart, one, other, wide = at([0, 4], [1, 2]), at([100, 200], [3, 4]), at([200, 150], [4, 5]), at([300], [9], 4)
    found = each_once_on_host([wide, other, apart, one])
    assert told(found) == [(0, 2, 1), (4, 2, 2), (100, 2, 3), (150, 2, 5), (200, 2, 4), (300, 4, 9)]
    assert any(part is apart for part in found)
    assert any(part is wide for part in found)
    with pytest.raises(DeltaRefusedError, match="different values of one element"):
        each_once_on_host([one, at([200], [7])])
    assert each_once_on_host([]) == []


def test_given_a_wide_element_and_a_part_of_it_then_both_become_parts() -> None:
    found = each_once_on_host([at([100], [0x00020001], 4), at([102, 104], [2, 3])])
    assert told(found) == [(100, 2, 1), (102, 2, 2), (104, 2, 3)]
