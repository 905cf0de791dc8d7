"""Plans as they travel: columns that say anything, and plans that were never made."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from ckpt_transport.planning import Plan, verify
from ckpt_transport.planning.values import columns
from ckpt_transport.planning.values.plan import COLUMNS, PLAIN
from ckpt_transport.update.plan_cache import PlanCache
from tests.fuzz.damage import changed, damaged, odd
from tests.fuzz.fuzzing import fuzz
from tests.unit.planning.test_block_order import halves
from tests.unit.worlds import chained, filled

PLANS = [*(world.plan() for world in (chained(), filled())), halves()]
TREES = [msgspec.msgpack.decode(msgspec.msgpack.encode(each)) for each in PLANS]


def test_given_columns_that_say_anything_then_they_are_a_value_or_a_decode_error() -> None:
    packed = [columns._packed(tree) for tree in TREES]

    def read(data: bytes) -> None:
        Plan.decode(COLUMNS + data)

    fuzz(damaged([columns.encode(tree) for tree in TREES]), read, msgspec.DecodeError)
    written = [msgspec.msgpack.encode(each) for each in packed]
    fuzz(damaged(written).map(zlib.compress), read, msgspec.DecodeError)
    fuzz(changed(packed).map(msgspec.msgpack.encode).map(zlib.compress), read, msgspec.DecodeError, examples=120)
    forms = st.recursive(odd, lambda inner: st.tuples(st.integers(0, 7), inner, inner).map(list), max_leaves=12)
    fuzz(forms.map(msgspec.msgpack.encode).map(zlib.compress), read, msgspec.DecodeError)


def take(data: bytes) -> None:
    """Take a plan as a member does that is proposed one."""
    cache = PlanCache(1 << 30)
    found = cache.take(data, "", "")
    for rank in range(min(len(found.topology.participants), 4)):
        cache.schedule(found, rank)


def test_given_a_plan_with_odd_values_then_it_is_proved_or_refused() -> None:
    def write(tree: Any) -> bytes:
        return PLAIN + msgspec.msgpack.encode(tree)

    fuzz(changed(TREES).map(write), take, examples=200)


@pytest.mark.parametrize("number", range(len(PLANS)))
def test_given_a_plan_as_it_was_made_then_it_is_taken(number: int) -> None:
    verify(PLANS[number])
    take(PLANS[number].encode())
