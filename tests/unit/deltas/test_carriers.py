"""Carriers: what of a version is compared, and what is made of what differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_transport import dtypes
from ckpt_transport.deltas import (
    CopiedBytes,
    Differences,
    carriers,
    delta_manifest,
    find_differences,
    host_encoding,
    ranges_of,
    why_unlike,
)
from ckpt_transport.deltas.host_changes import ChangedUnits, changed_units
from ckpt_transport.memory import Buffer, MemoryKind
from ckpt_transport.planning import DeltaForm, Extent, Manifest, PlacedTensor, TensorSpec
from tests.carried import elements_of

MIB = 1 << 20
TYPES = ("F8_E4M3", "BF16", "F32", "I64")


def placed(*tensors: tuple[str, int], extent: int = 0, gap: int = 0) -> list[PlacedTensor]:
    """Tensors of these types and numbers of elements, one behind the other."""
    found, offset = [], 0
    for number, (dtype, count) in enumerate(tensors):
        spec = TensorSpec(f"{extent}.{number}", dtype, (count,))
        found.append(PlacedTensor(spec, extent, offset, spec.nbytes))
        offset = -(-(offset + spec.nbytes) // 256) * 256 + gap
    return found


def size_of(tensors: Sequence[PlacedTensor]) -> int:
    return max(tensor.offset + tensor.nbytes for tensor in tensors)


def no_check() -> None:
    pass


def test_given_large_tensors_of_two_types_then_each_is_compared_by_its_own_elements() -> None:
    found = ranges_of(placed(("BF16", MIB), ("F32", MIB), ("F32", 8), ("BF16", MIB)), 64 * MIB)
    assert [(each.offset, each.nbytes, each.unit) for each in found] == [
        (0, 2 * MIB, 2),
        (2 * MIB, 4 * MIB + 32, 4),
        (6 * MIB + 256, 2 * MIB, 2),
    ]


def test_given_a_small_tensor_of_wider_elements_then_it_goes_with_the_one_before() -> None:
    found = ranges_of(placed(("BF16", MIB), ("F32", 8), ("BF16", MIB)), 64 * MIB)
    assert [(each.nbytes, each.unit) for each in found] == [(4 * MIB + 256, 2)]


def test_given_much_memory_then_no_range_is_longer_than_was_asked_for() -> None:
    found = ranges_of(placed(("BF16", MIB), ("BF16", MIB)), MIB + 100)
    assert [(each.offset, each.nbytes) for each in found] == [(n * MIB, MIB) for n in range(4)]


def test_given_a_gap_and_several_extents_then_only_what_tensors_have_is_compared() -> None:
    tensors = [*placed(("U8", 1000), ("U8", 1000), gap=4096), *placed(("U8", 1000), extent=1), *placed(("U8", 0))]
    assert [(each.extent, each.offset, each.nbytes) for each in ranges_of(tensors, MIB)] == [
        (0, 0, 1000),
        (0, 5120, 1000),
        (1, 0, 1000),
    ]


def rebuilt(base: torch.Tensor, differences: Differences) -> torch.Tensor:
    """What a sink that serves ``base`` makes of what differs."""
    serves = base.clone()
    for (_, offset, nbytes, unit), encoded, _ in differences.found:
        places, values = elements_of(encoded.raw, encoded.form, unit, nbytes, encoded.count)
        serves[offset : offset + nbytes].numpy().view(f"u{unit}")[places] = values
    return serves


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(TYPES), st.integers(1, 5000)), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.001, 0.05, 0.6, 1.0]),
    st.integers(256, 1 << 16),
    st.integers(0, 1 << 30),
)
def test_given_any_two_versions_then_carriers_make_one_of_the_other(
    tensors: list[tuple[str, int]], density: float, most: int, seed: int
) -> None:
    version = placed(*tensors)
    generator = torch.Generator().manual_seed(seed)
    base = torch.randint(0, 256, (size_of(version),), dtype=torch.uint8, generator=generator)
    new = base.clone()
    for tensor in version:
        part = new[tensor.offset : tensor.offset + tensor.nbytes]
        unit = dtypes.alignment(tensor.spec.dtype)
        hit = torch.rand(len(part) // unit, generator=generator) < density
        part.view(-1, unit)[hit] ^= 1 + seed % 255
    found = find_differences(ranges_of(version, most), [Buffer(base)], [CopiedBytes(Buffer(new))], 1 << 40, no_check)
    assert found is not None
    assert torch.equal(rebuilt(base, found), new)


def test_given_a_version_that_is_the_same_then_one_element_is_carried() -> None:
    version = placed(("F32", 100))
    raw = torch.arange(400, dtype=torch.int64).to(torch.uint8)
    found = find_differences(ranges_of(version, MIB), [Buffer(raw)], [CopiedBytes(Buffer(raw.clone()))], MIB, no_check)
    assert found is not None
    assert (found.changed, found.elements) == (1, 100)
    assert torch.equal(rebuilt(raw, found), raw)


def test_given_more_changes_than_may_be_carried_then_nothing_is_and_the_search_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(carriers, "TOGETHER_ON_HOST", 1024)
    version = placed(("U8", 4096))
    old, new = torch.zeros(4096, dtype=torch.uint8), torch.ones(4096, dtype=torch.uint8)
    ranges, looked = ranges_of(version, 1024), 0

    def look() -> None:
        nonlocal looked
        looked += 1

    assert find_differences(ranges, [Buffer(old)], [CopiedBytes(Buffer(new))], 1500, look) is None
    assert looked == 2


def test_given_more_changes_than_may_be_carried_in_ranges_that_are_compared_together_then_the_search_ends_within(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[int] = []

    def look(old: Any, now: Any, unit: int) -> ChangedUnits:
        looked.append(len(now))
        return changed_units(old, now, unit)

    monkeypatch.setattr(host_encoding, "changed_units", look)
    version = placed(("U8", 64 * MIB))
    old, new = torch.zeros(64 * MIB, dtype=torch.uint8), torch.ones(64 * MIB, dtype=torch.uint8)
    assert (
        find_differences(ranges_of(version, 8 * MIB), [Buffer(old)], [CopiedBytes(Buffer(new))], MIB, no_check) is None
    )
    assert sum(looked) < 64 * MIB


def test_given_what_differs_then_the_manifest_says_what_carries_it_and_for_which_tensors() -> None:
    version = placed(("BF16", 1000), ("BF16", 1000))
    manifest = Manifest("step-2", (Extent(0, size_of(version), MemoryKind.PRIVATE),), tuple(version))
    old = torch.zeros(size_of(version), dtype=torch.uint8)
    new = old.clone()
    new[3000] = 7
    found = find_differences(ranges_of(version, 1024), [Buffer(old)], [CopiedBytes(Buffer(new))], MIB, no_check)
    assert found is not None
    made = delta_manifest(manifest, "step-1", found, Extent(0, 4096, MemoryKind.PRIVATE), [256])
    (delta,) = made.deltas
    assert (made.version, delta.base, delta.tensors) == ("step-2", "step-1", manifest.tensors)
    (carrier,) = delta.carriers
    assert (carrier.extent, carrier.offset, carrier.nbytes, carrier.unit) == (0, 2048, 1024, 2)
    assert (carrier.form, carrier.count) == (DeltaForm.LIST, 1)
    assert [(each.spec.name, each.offset) for each in made.tensors] == [(carrier.name, 256)]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (placed(("BF16", 10), ("F32", 10)), "not those of 'a'"),
        (placed(("F32", 10), ("BF16", 10), gap=256), "not those of 'a'"),
        (placed(("F32", 10), ("BF16", 10)), ""),
    ],
)
def test_given_versions_that_lie_apart_then_they_are_not_compared(other: list[PlacedTensor], why: str) -> None:
    one = Manifest("a", (Extent(0, 8192, MemoryKind.PRIVATE),), tuple(placed(("F32", 10), ("BF16", 10))))
    two = Manifest("b", (Extent(0, 8192, MemoryKind.SHARED),), tuple(other))
    assert why in why_unlike(one, two)
    assert bool(why_unlike(one, two)) == bool(why)


def test_given_memory_of_another_size_then_versions_are_not_compared() -> None:
    tensors = tuple(placed(("F32", 10)))
    one, two = (
        Manifest(name, (Extent(0, size, MemoryKind.PRIVATE),), tensors) for name, size in (("a", 256), ("b", 512))
    )
    assert "other memory" in why_unlike(one, two)
