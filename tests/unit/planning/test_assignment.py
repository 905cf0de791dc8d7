"""Who sends what, where several hold the same: balanced, compared with the exact optimum, and complete."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import settings as checked
from hypothesis import strategies as st

from ckpt_transport.errors import CheckpointError, CoverageError
from ckpt_transport.memory import MemoryKind
from ckpt_transport.planning import (
    Extent,
    Manifest,
    PlacedTensor,
    Settings,
    TensorRange,
    TensorSpec,
    plan,
    spread,
    verify,
)
from ckpt_transport.planning.assignment import Unit, assign
from ckpt_transport.planning.values.byte_ranges import ByteRangeSet
from tests.unit.any_schedule import simulate
from tests.unit.worlds import INVENTED, topology

replace = msgspec.structs.replace
TOLERANCE = 1.1
"""As near to the optimum as an assignment must come."""


def ends(units: Sequence[Unit], owners: Sequence[int], rates: Mapping[int, float]) -> float:
    """When the last holder has sent all that is its own, in seconds."""
    return max(
        sum(unit.nbytes for unit, owner in zip(units, owners, strict=True) if owner == rank) / rate
        for rank, rate in rates.items()
    )


def optimum(units: Sequence[Unit], rates: Mapping[int, float]) -> float:
    """The earliest end there is, by trying every assignment that may still be better than the best so far."""
    largest_first = sorted(units, key=lambda unit: -unit.nbytes)
    best = math.inf
    busy = dict.fromkeys(rates, 0.0)

    def place(index: int) -> None:
        nonlocal best
        if index == len(largest_first):
            best = max(busy.values())
            return
        unit = largest_first[index]
        for rank in unit.holders:
            before = busy[rank]
            busy[rank] += unit.nbytes / rates[rank]
            if max(busy.values()) < best:
                place(index + 1)
            busy[rank] = before

    place(0)
    return best


def fluid(units: Sequence[Unit], rates: Mapping[int, float]) -> float:
    """The earliest end if bytes could be shared out freely: some set of holders is the bottleneck, for what only
    they hold (Hall's theorem for flows)."""
    ranks = list(rates)
    return max(
        sum(unit.nbytes for unit in units if set(unit.holders) <= set(group)) / sum(rates[rank] for rank in group)
        for size in range(1, len(ranks) + 1)
        for group in itertools.combinations(ranks, size)
    )


@st.composite
def problems(draw: st.DrawFn, most: int) -> tuple[list[Unit], dict[int, float]]:
    ranks = list(range(draw(st.integers(1, 4))))
    holders = st.sets(st.sampled_from(ranks), min_size=1).map(lambda found: tuple(sorted(found)))
    units = st.builds(Unit, st.integers(0, 1000), holders)
    rates = {rank: draw(st.sampled_from([1e8, 4e8, 1e9])) for rank in ranks}
    return draw(st.lists(units, min_size=1, max_size=most)), rates


@checked(max_examples=400, deadline=None)
@given(problems(most=7))
def test_given_few_units_then_the_assignment_is_within_a_tenth_of_the_optimum(
    problem: tuple[list[Unit], dict[int, float]],
) -> None:
    units, rates = problem
    owners = assign(units, rates)
    assert all(owner in unit.holders for unit, owner in zip(units, owners, strict=True))
    assert ends(units, owners, rates) <= TOLERANCE * optimum(units, rates)


@checked(max_examples=300, deadline=None)
@given(problems(most=5))
@example(([Unit(0, (0, 1)), Unit(104, (0, 1)), Unit(118, (0, 2, 3))], {0: 1e8, 1: 4e8, 2: 1e8, 3: 1e8}))
def test_given_many_small_units_then_the_assignment_is_within_a_tenth_of_what_a_fluid_could_do(
    problem: tuple[list[Unit], dict[int, float]],
) -> None:
    """Every large unit is cut into 40 of about one size: then the fluid optimum can nearly be reached.

    In the example holder 0 has to hand two units to holder 1 before it can take one that the others should not send.
    """
    large, rates = problem
    units = [
        Unit(max(unit.nbytes * 100 // 40 + offset, 1), unit.holders)
        for unit in large
        for offset in itertools.islice(itertools.cycle((-7, 0, 7)), 40)
    ]
    slack = max(unit.nbytes for unit in units) / min(rates.values())
    assert ends(units, assign(units, rates), rates) <= TOLERANCE * fluid(units, rates) + slack


@pytest.mark.parametrize("holders", [2, 3, 8, 40])
def test_given_equal_holders_then_each_sends_its_share(holders: int) -> None:
    units = [Unit(64 + number % 5, tuple(range(holders))) for number in range(24 * holders)]
    rates = dict.fromkeys(range(holders), 1e9)
    fair = sum(unit.nbytes for unit in units) / 1e9 / holders
    assert ends(units, assign(units, rates), rates) <= 1.05 * fair


def test_given_a_slow_holder_then_it_sends_less() -> None:
    units = [Unit(100, (0, 1)) for _ in range(60)]
    owners = assign(units, {0: 1e9, 1: 2e9})
    assert owners.count(0) == 20


# -- of a version ------------------------------------------------------------------------------------------------------


def holder(owner: int, sizes: Sequence[int], *, mark: bytes = b"same", gap: int = 0, skip: int = 0) -> Manifest:
    """A shard that holds U8 tensors of these sizes but for the first ``skip``; ``mark`` stands for their bytes."""
    tensors: list[PlacedTensor] = []
    offset = 0
    for number, nbytes in list(enumerate(sizes))[skip:]:
        tensors.append(PlacedTensor(TensorSpec(f"t{number}", "U8", (nbytes,)), 0, offset, nbytes))
        offset += -(-nbytes // 256) * 256 + gap
    digests = tuple(mark + tensor.spec.name.encode() for tensor in tensors)
    return Manifest("step-2", (Extent(owner, offset, MemoryKind.SHARED),), tuple(tensors), (), digests)


def shares(made: Manifest) -> dict[int, int]:
    """Bytes per owner."""
    return {
        owner: sum(run.nbytes for run in made.tensors if made.extents[run.extent].owner == owner)
        for owner in made.owners
    }


SIZES = st.lists(st.sampled_from([0, 5, 256, 700, 4096, 30_000, 100_000]), min_size=1, max_size=12)


@checked(max_examples=200, deadline=None)
@given(SIZES, st.integers(2, 4), st.integers(0, 1), st.booleans(), st.integers(0, 2**16))
def test_given_replicas_then_each_byte_has_one_owner_and_the_plan_is_proved_and_runs(
    sizes: list[int], holders: int, gap: int, whole: bool, seed: int
) -> None:
    """Also where the holders laid the tensors out differently, and one of them lacks the first."""
    shards = [
        holder(owner, sizes, gap=owner * gap * 512, skip=owner % 2 if len(sizes) > 1 else 0) for owner in range(holders)
    ]
    rates = dict.fromkeys(range(holders), 1e9)
    made = spread("step-2", shards, rates, (), whole=whole)
    assert made.nbytes == sum(sizes)
    fleet = topology(["a"] * holders, ["b", "c", "c"], whole_tensors=whole)
    for transport in ("read-chain", "read-chain+window", "wire"):
        planned = plan(made, fleet, INVENTED, Settings(transport=transport, bucket_bytes=4096))
        verify(planned)
        simulate(planned, seed)


@checked(max_examples=200, deadline=None)
@given(st.lists(st.integers(20_000, 90_000), min_size=3, max_size=30), st.integers(2, 4))
def test_given_full_replicas_then_holders_send_the_same_within_a_tenth(sizes: list[int], holders: int) -> None:
    rates = dict.fromkeys(range(holders), 1e9)
    sent = shares(spread("step-2", [holder(owner, sizes) for owner in range(holders)], rates, (), whole=False))
    assert max(sent.values()) <= 1.1 * sum(sizes) / holders


@checked(max_examples=200, deadline=None)
@given(SIZES, st.data())
def test_given_bytes_that_are_present_then_only_the_others_have_an_owner(sizes: list[int], data: st.DataObject) -> None:
    """A plan for what is left covers exactly that, and the verifier knows."""
    have = ByteRangeSet()
    for number, nbytes in enumerate(sizes):
        if nbytes and data.draw(st.booleans()):
            start = data.draw(st.integers(0, nbytes - 1))
            have.add(f"t{number}", start, data.draw(st.integers(1, nbytes - start)))
    present = [
        TensorRange(TensorSpec(name, "U8", (sizes[int(name[1:])],)), start, length) for name, start, length in have
    ]
    made = spread("step-2", [holder(0, sizes), holder(1, sizes)], {0: 1e9, 1: 1e9}, present, whole=False)
    moved = ByteRangeSet((run.spec.name, run.start, run.nbytes) for run in made.tensors)
    for number, nbytes in enumerate(sizes):
        name = f"t{number}"
        gaps = [(name, low, high - low) for low, high in have.missing(name, 0, nbytes)]
        assert [run for run in moved if run[0] == name] == gaps
    if made.tensors:
        planned = plan(made, topology(["a", "a"], ["a", "b"]), INVENTED, Settings(transport="wire", bucket_bytes=512))
        verify(planned)
        if present and present[0].nbytes < present[0].spec.nbytes:
            with pytest.raises(CoverageError, match=f"of {present[0].spec.name}: no owner"):
                verify(replace(planned, manifest=replace(made, present=tuple(present[1:]))))


def test_given_no_replicas_then_the_version_is_merged_as_ever() -> None:
    one, two = holder(0, [10, 20]), holder(1, [10, 20, 30], skip=2)
    assert spread("step-2", [one, two], {0: 1.0, 1: 1.0}, (), whole=False).tensors == (
        *one.tensors, replace(two.tensors[0], extent=1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (holder(1, [10, 20], mark=b"else"), "source ranks 0 and 1, and differ"),
        (replace(holder(1, [10, 20]), digests=()), "do not both say that these are equal"),
        (holder(1, [10, 21]), r"t1.*differs: t1 \(U8 \[20\]\) and t1 \(U8 \[21\]\)"),
        (replace(holder(1, [10, 20]), version="step-1"), "'step-1' where 'step-2'"),
    ],
)
def test_given_holders_that_differ_then_both_are_named(other: Manifest, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        spread("step-2", [holder(0, [10, 20]), other], {0: 1.0, 1: 1.0}, (), whole=False)
