"""What is read from a carrier is what differs, bit for bit, whatever the bytes mean; bytes that lie are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.deltas import UNIT_DTYPES, Encoded, encode
from ckpt_transport.deltas.sections import BLOCK_UNITS, block_count, sections
from ckpt_transport.deltas.torch_encoding import encode_by_torch
from ckpt_transport.errors import CheckpointError
from ckpt_transport.planning import DeltaForm
from tests.carried import elements_of

UNITS = st.sampled_from(sorted(UNIT_DTYPES))
MANY = 2 * BLOCK_UNITS + 77
COUNTS = st.one_of(st.integers(0, 40), st.sampled_from([BLOCK_UNITS - 1, BLOCK_UNITS, BLOCK_UNITS + 1, MANY]))


def changed(unit: int, units: int, places: np.ndarray, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two versions of a range that differ in these units, each in one bit or more."""
    random = np.random.default_rng(seed)
    base = random.integers(0, 256, unit * units, np.uint8)
    new = base.copy().reshape(units, unit)
    new[places, random.integers(0, unit, len(places))] ^= random.integers(1, 256, len(places), np.uint8)
    return torch.from_numpy(base), torch.from_numpy(new.reshape(-1))


def some(units: int, share: float, seed: int) -> np.ndarray:
    return np.flatnonzero(np.random.default_rng(seed).random(units) < share)


def check(base: torch.Tensor, new: torch.Tensor, unit: int) -> Encoded:
    """Encode, read, and bring the base to the new version."""
    encoded = encode(base, new, unit)
    places, values = elements_of(encoded.raw, encoded.form, unit, new.numel(), encoded.count)
    assert len(places) == len(values) == encoded.count
    brought = base.clone()
    brought.numpy().view(f"u{unit}")[places] = values
    assert torch.equal(brought, new)
    if encoded.form is not DeltaForm.WHOLE:
        differ = base.numpy().view(f"u{unit}") != new.numpy().view(f"u{unit}")
        assert np.array_equal(places, np.flatnonzero(differ))
    return encoded


@given(unit=UNITS, units=COUNTS, share=st.sampled_from([0, 0.003, 0.05, 0.2, 0.99, 1]), seed=st.integers(0, 99))
def test_given_two_versions_then_what_is_carried_makes_one_of_the_other(
    unit: int, units: int, share: float, seed: int
) -> None:
    check(*changed(unit, units, some(units, share, seed), seed), unit)


@given(unit=UNITS, units=st.integers(1, MANY), where=st.floats(0, 1))
def test_given_one_element_that_differs_then_one_is_carried(unit: int, units: int, where: float) -> None:
    place = round(where * (units - 1))
    encoded = check(*changed(unit, units, np.array([place])), unit)
    assert encoded.count == 1 or (encoded.form is DeltaForm.WHOLE and units * unit <= 2 * 16)


@pytest.mark.parametrize(
    ("share", "form"),
    [
        (0.01, DeltaForm.LIST),
        (0.05, DeltaForm.LIST),
        (0.08, DeltaForm.MASK),
        (0.5, DeltaForm.MASK),
        (1, DeltaForm.WHOLE),
    ],
)
@pytest.mark.parametrize("unit", UNIT_DTYPES)
def test_given_a_density_then_the_form_is_taken_that_has_the_fewest_bytes(
    unit: int, share: float, form: DeltaForm
) -> None:
    encoded = check(*changed(unit, MANY, some(MANY, share, 5)), unit)
    assert encoded.form is form
    counts = {DeltaForm.LIST: encoded.count, DeltaForm.MASK: encoded.count, DeltaForm.WHOLE: MANY}
    assert encoded.raw.numel() == min(sections(each, unit, MANY, count).end for each, count in counts.items())


@given(unit=UNITS, units=COUNTS, share=st.sampled_from([0, 0.003, 0.05, 0.2, 0.99, 1]), seed=st.integers(0, 99))
def test_given_two_versions_then_operations_of_torch_encode_as_the_host_does(
    unit: int, units: int, share: float, seed: int
) -> None:
    base, new = changed(unit, units, some(units, share, seed), seed)
    encoded, by_torch = encode(base, new, unit), encode_by_torch(base, new, unit)
    assert (encoded.form, encoded.count) == (by_torch.form, by_torch.count)
    assert torch.equal(encoded.raw, by_torch.raw)


def test_given_nothing_that_differs_then_nothing_is_carried() -> None:
    for nbytes in (0, 8, 8 * MANY):
        base = torch.randint(0, 256, (nbytes,), dtype=torch.uint8)
        encoded = check(base, base.clone(), 8)
        assert encoded.count == encoded.raw.numel() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_given_signed_zeros_and_nans_of_other_bits_then_they_differ(dtype: torch.dtype) -> None:
    nan = torch.full((4,), torch.nan, dtype=dtype)
    base = torch.cat([torch.zeros(4, dtype=dtype), nan, torch.ones(92, dtype=dtype)]).view(torch.uint8)
    new = base.clone()
    size = dtype.itemsize
    new[size - 1] = 0x80
    new[5 * size] ^= 1
    places = places_of(check(base, new, size), size, base.numel())
    assert places.tolist() == [0, 5]


def places_of(encoded: Encoded, unit: int, nbytes: int) -> np.ndarray:
    return elements_of(encoded.raw, encoded.form, unit, nbytes, encoded.count)[0]


@given(start=st.integers(0, 9), behind=st.integers(0, 9), unit=UNITS)
def test_given_slices_of_other_memory_then_only_they_are_compared(start: int, behind: int, unit: int) -> None:
    base, new = changed(unit, 1000, some(1000, 0.02, start), start)
    around = [torch.randint(0, 256, (n,), dtype=torch.uint8) for n in (start, behind, 7 - start % 7, behind)]
    one = torch.cat([around[0], base, around[1]])[start:][: base.numel()]
    other = torch.cat([around[2], new, around[3]])[len(around[2]) :][: new.numel()]
    encoded = check(one, other, unit)
    moved = torch.cat([around[0], encoded.raw])[start:]
    found = places_of(Encoded(encoded.form, encoded.count, moved), unit, 1000 * unit)
    assert np.array_equal(found, places_of(encoded, unit, 1000 * unit))


@given(
    form=st.sampled_from(DeltaForm),
    unit=st.integers(-1, 9),
    nbytes=st.one_of(st.integers(-9, 1 << 20), st.integers(1 << 40, 1 << 62)),
    count=st.one_of(st.integers(-9, 1 << 12), st.integers(1 << 40, 1 << 62)),
    raw=st.binary(max_size=300),
)
def test_given_any_bytes_then_they_are_refused_or_read_as_claimed(
    form: DeltaForm, unit: int, nbytes: int, count: int, raw: bytes
) -> None:
    carried = torch.from_numpy(np.frombuffer(bytearray(raw), np.uint8))
    try:
        places, values = elements_of(carried, form, unit, nbytes, count)
    except CheckpointError:
        return
    assert len(places) == len(values) == count
    assert not len(places) or (int(places[0]) >= 0 and int(places[-1]) < nbytes // unit)
    assert bool((places[1:] > places[:-1]).all())


@given(unit=UNITS, share=st.sampled_from([0.01, 0.3]), at=st.integers(0, 1 << 20), by=st.integers(1, 255))
def test_given_one_byte_that_lies_then_places_are_refused_or_still_ascend(
    unit: int, share: float, at: int, by: int
) -> None:
    units = BLOCK_UNITS + 9
    encoded = encode(*changed(unit, units, some(units, share, 1)), unit)
    encoded.raw[at % encoded.raw.numel()] ^= by
    try:
        places = places_of(encoded, unit, unit * units)
    except CheckpointError:
        return
    assert len(places) == encoded.count
    assert int(places[-1]) < units
    assert bool((places[1:] > places[:-1]).all())


def a_list() -> tuple[torch.Tensor, int]:
    base, new = changed(2, MANY, np.array([3, 4, BLOCK_UNITS, MANY - 1]))
    encoded = encode(base, new, 2)
    assert encoded.form is DeltaForm.LIST
    return encoded.raw, encoded.count


def test_given_counts_that_do_not_add_up_then_the_error_says_so() -> None:
    for lie in (3, -1, BLOCK_UNITS + 1, 2**31 - 1):
        raw, count = a_list()
        raw[:4].view(torch.int32).fill_(lie)
        with pytest.raises(CheckpointError, match="do not add up to its 4 elements"):
            elements_of(raw, DeltaForm.LIST, 2, 2 * MANY, count)


def test_given_places_that_do_not_ascend_or_lie_outside_then_the_error_says_so() -> None:
    at = sections(DeltaForm.LIST, 2, MANY, 4).places
    for place, lie in ((0, 4), (0, 5), (3, 77)):
        raw, count = a_list()
        raw[at:][2 * place :][:2].view(torch.int16).fill_(lie)
        with pytest.raises(CheckpointError, match=f"do not ascend within its range of {MANY} elements"):
            elements_of(raw, DeltaForm.LIST, 2, 2 * MANY, count)


def test_given_a_mask_with_a_bit_too_many_or_outside_then_the_error_says_so() -> None:
    base, new = changed(2, 100, np.arange(0, 100, 2))
    for lie in (0b0011, 0b0000):
        encoded = encode(base, new, 2)
        assert encoded.form is DeltaForm.MASK
        encoded.raw[0] = lie
        with pytest.raises(CheckpointError, match="does not have 50 bits within its range of 100 elements"):
            elements_of(encoded.raw, encoded.form, 2, 200, encoded.count)
    encoded = encode(base, new, 2)
    encoded.raw[0] = 0b01010100
    encoded.raw[12] |= 0b10000
    with pytest.raises(CheckpointError, match="does not have 50 bits within"):
        elements_of(encoded.raw, encoded.form, 2, 200, encoded.count)


@pytest.mark.parametrize("form", DeltaForm)
def test_given_a_byte_more_or_less_then_the_error_names_both_lengths(form: DeltaForm) -> None:
    share = {DeltaForm.LIST: 0.01, DeltaForm.MASK: 0.3, DeltaForm.WHOLE: 1}[form]
    encoded = encode(*changed(2, 1000, some(1000, share, 2)), 2)
    assert encoded.form is form
    for raw in (encoded.raw[:-1], torch.cat([encoded.raw, encoded.raw[:1]]), encoded.raw[:0]):
        with pytest.raises(CheckpointError, match=f"takes {encoded.raw.numel()} bytes and not {raw.numel()}"):
            elements_of(raw, form, 2, 2000, encoded.count)


def test_given_claims_that_cannot_be_then_they_are_refused_before_anything_is_read() -> None:
    nothing = torch.empty(0, dtype=torch.uint8)
    for unit, nbytes, count in ((3, 9, 1), (2, 9, 1), (2, -2, 0), (2, 8, 5), (2, 8, -1)):
        with pytest.raises(CheckpointError, match=f"claims {count} elements of {unit} bytes"):
            elements_of(nothing, DeltaForm.LIST, unit, nbytes, count)
    with pytest.raises(CheckpointError, match="carries a range of 4 elements whole, and claims 3"):
        elements_of(nothing, DeltaForm.WHOLE, 2, 8, 3)
    with pytest.raises(CheckpointError, match="has 4 bytes"):
        elements_of(torch.zeros(4, dtype=torch.uint8), DeltaForm.LIST, 2, 8, 0)
    assert block_count(0) == 0
