"""Digests: whatever happens to bytes changes them, and every way to compute one gives the same."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ckpt_transport.memory.device_digest import add_by_torch
from ckpt_transport.memory.digest import as_bytes, digest
from ckpt_transport.memory.digest_pages import (
    COLUMN_SALT,
    COLUMNS,
    GOLDEN,
    MULTIPLIERS,
    PAGE_BYTES,
    ROW_BYTES,
    ROWS,
    SHIFTS,
    keys,
    page_count,
)
from ckpt_transport.memory.host_digest import MASK, PAGES_AT_ONCE, PAGES_COPIED, PAGES_SHORT, digests_of_pages

SIZES = st.one_of(
    st.integers(0, 70),
    st.sampled_from([PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, 3 * PAGE_BYTES + 12_345]),
    st.integers(1, 2 * PAGE_BYTES),
)
CHECKED = settings(deadline=None, max_examples=60)


def some(nbytes: int, seed: int = 0) -> torch.Tensor:
    """Bytes as they are in a model: at random, or all alike."""
    if seed % 3 == 0:
        return torch.full((nbytes,), seed % 256, dtype=torch.uint8)
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def of(*runs: torch.Tensor) -> bytes:
    return as_bytes(digest(runs))


def by_the_book(runs: list[bytes]) -> bytes:
    """The definition, word by word, in whole numbers."""

    def mix(number: int) -> int:
        for shift, factor in zip(SHIFTS, (*MULTIPLIERS, 1), strict=True):
            number = (number ^ (number >> shift)) * factor & MASK
        return number

    rows = columns = first = 0
    for run in runs:
        pages = -(-len(run) // PAGE_BYTES)
        words = np.frombuffer(run.ljust(pages * PAGE_BYTES, b"\0"), np.uint64).reshape(pages, ROWS, COLUMNS)
        for number, page in enumerate(words, start=first):
            for row in range(ROWS):
                along = sum(int(word) * int(key) for word, key in zip(page[row], keys(), strict=True))
                rows += mix(along + (number * ROWS + row + 1) * GOLDEN & MASK)
            for column in range(COLUMNS):
                down = sum(map(int, page[:, column]))
                columns += mix(down + (number * COLUMNS + column + 1) * GOLDEN + COLUMN_SALT & MASK)
        first += pages
    return (rows & MASK).to_bytes(8, "little") + (columns & MASK).to_bytes(8, "little")


def test_given_bytes_then_their_digest_is_what_its_definition_says() -> None:
    runs = [some(PAGE_BYTES + 1001, 1), some(77, 2), some(0)]
    assert of(*runs) == by_the_book([bytes(run.numpy()) for run in runs])
    assert {int(key) % 2 for key in keys()} == {1}
    assert len(set(map(int, keys()))) == COLUMNS


def test_given_short_runs_among_others_then_their_digest_is_what_its_definition_says() -> None:
    """Some are put side by side, more than are mixed at once."""
    short = [ROW_BYTES, 0, 1, 2 * ROW_BYTES, 300, 2 * ROW_BYTES - 3]
    sizes = [*short, 2 * ROW_BYTES + 1, 7, *short * 7, PAGE_BYTES + 5, 9]
    runs = [some(nbytes + 1, seed)[1:] for seed, nbytes in enumerate(sizes)]
    assert len(sizes) > PAGES_SHORT
    assert of(*runs) == by_the_book([run.numpy().tobytes() for run in runs])


@CHECKED
@given(SIZES, st.integers(0, 5))
def test_given_bytes_then_operations_that_every_device_has_agree_with_those_of_a_cpu(nbytes: int, seed: int) -> None:
    runs = some(nbytes, seed), some(nbytes // 3, seed + 1), some(nbytes // 2, seed + 2)[1:]
    sums, first = torch.zeros(2, dtype=torch.int64), 0
    for run in runs:
        add_by_torch(sums, run, first)
        first += page_count(run.numel())
    assert as_bytes(sums) == of(*runs)


@settings(deadline=None, max_examples=20)
@example(PAGES_AT_ONCE, 0, 1)
@example(PAGES_AT_ONCE, 1, 0)
@given(st.sampled_from([PAGES_COPIED, PAGES_SHORT]), st.integers(-ROW_BYTES - 1, PAGE_BYTES + 1), st.integers(0, 16))
def test_given_more_pages_than_are_worked_on_at_once_at_any_address_then_operations_of_every_device_agree(
    pages: int, more: int, offset: int
) -> None:
    raw = some(pages * PAGE_BYTES + more + offset, 1)[offset:]
    sums = torch.zeros(2, dtype=torch.int64)
    add_by_torch(sums, raw, 0)
    assert as_bytes(sums) == of(raw)


@CHECKED
@given(st.lists(st.integers(1, PAGE_BYTES), max_size=6), st.integers(0, 2 * PAGES_SHORT), st.integers(0, 9))
def test_given_many_short_runs_then_the_digest_of_each_is_as_if_it_were_alone(
    sizes: list[int], alike: int, offset: int
) -> None:
    runs = [some(offset + nbytes, nbytes)[offset:] for nbytes in (*sizes, *[ROW_BYTES + 1] * alike)]
    assert list(digests_of_pages(runs)) == [as_bytes(digest([run])) for run in runs]


@CHECKED
@given(SIZES.filter(bool), st.integers(0, 5), st.data())
def test_given_a_flipped_bit_then_both_sums_change(nbytes: int, seed: int, data: st.DataObject) -> None:
    raw = some(nbytes, seed)
    before = of(raw)
    raw[data.draw(st.integers(0, nbytes - 1))] ^= 1 << data.draw(st.integers(0, 7))
    after = of(raw)
    assert before[:8] != after[:8]
    assert before[8:] != after[8:]


@CHECKED
@given(st.data(), st.sampled_from([1, 8, 64, 256, ROW_BYTES, PAGE_BYTES]))
def test_given_swapped_spans_then_the_digest_changes(data: st.DataObject, span: int) -> None:
    """Given two spans that differ, in one bit at least, when they change places, then it is noticed."""
    count = data.draw(st.integers(2, 9))
    raw = some(span * count + 5, data.draw(st.integers(0, 5)))
    one, other = sorted(data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=2, unique=True)))
    first, second = raw[one * span :][:span], raw[other * span :][:span]
    place = data.draw(st.integers(0, span - 1))
    second.copy_(first)
    second[place] ^= 1 << data.draw(st.integers(0, 7))
    before, kept = of(raw), first.clone()
    first.copy_(second)
    second.copy_(kept)
    assert of(raw) != before


@CHECKED
@given(SIZES.filter(lambda nbytes: nbytes > 1), st.integers(1, 300))
def test_given_shifted_or_missing_bytes_then_the_digest_changes(nbytes: int, by: int) -> None:
    raw = some(nbytes, 1)
    raw[0], raw[-1] = 1, 2
    before = of(raw)
    assert of(raw.roll(by % (nbytes - 1) + 1)) != before or torch.equal(raw.roll(by % (nbytes - 1) + 1), raw)
    short = raw.clone()
    short[-min(by, nbytes) :] = 0
    assert of(short) != before


def test_given_stale_rows_columns_or_pages_then_the_digest_changes() -> None:
    """Given pages of two versions, when any rectangle of the old one stays, then it is noticed."""
    old, new = some(4 * PAGE_BYTES, 1), some(4 * PAGE_BYTES, 2)
    found = {of(old), of(new)}
    chance = random.Random(3)
    for _ in range(200):
        mixed = new.clone().view(4 * ROWS, ROW_BYTES)
        top, left = chance.randrange(4 * ROWS), chance.randrange(0, ROW_BYTES, 8)
        stale = slice(top, top + chance.randrange(1, 2 * ROWS)), slice(left, left + chance.randrange(8, ROW_BYTES))
        mixed[stale] = old.view(4 * ROWS, ROW_BYTES)[stale]
        found.add(of(mixed.flatten()))
    assert len(found) == 202


def test_given_runs_in_another_order_then_they_have_another_digest() -> None:
    one, other = some(PAGE_BYTES, 1), some(PAGE_BYTES, 2)
    assert of(one, other) != of(other, one)
    assert of(one, other) == of(torch.cat([one, other]))


@pytest.mark.parametrize("offset", [1, 4, 8])
def test_given_bytes_that_lie_elsewhere_then_the_digest_is_the_same(offset: int) -> None:
    raw = some(PAGE_BYTES + 100, 4)
    elsewhere = torch.zeros(raw.numel() + offset, dtype=torch.uint8)
    elsewhere[offset:] = raw
    assert of(elsewhere[offset:]) == of(raw)
