"""What is written in columns is read again as it was; what is something else is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as checked
from hypothesis import strategies as st

from ckpt_transport.planning import Plan
from ckpt_transport.planning.values import columns
from ckpt_transport.planning.values import plan as values
from tests.unit.worlds import World, chained, worlds

ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**62), 2**62), st.text(), st.binary(), st.floats(allow_nan=False)
)
NAMES = st.from_regex(r"[a-z.]{0,3}([0-9]{0,3}[a-z.٣]{0,2}){0,3}", fullmatch=True)
VALUES = st.recursive(
    st.one_of(ATOMS, NAMES, st.lists(NAMES, max_size=20), st.lists(st.integers(-9, 2**40), max_size=20)),
    lambda each: st.one_of(
        st.lists(each, max_size=12),
        st.dictionaries(st.text(max_size=2), each, max_size=4),
        st.lists(st.fixed_dictionaries({"a": each, "b": each}), max_size=12),
    ),
    max_leaves=40,
)


@checked(max_examples=300, deadline=None)
@given(VALUES)
def test_given_any_value_then_it_is_read_as_it_was_written(value: object) -> None:
    assert columns.decode(columns.encode(value)) == value


@checked(max_examples=50, deadline=None)
@given(worlds(), st.sampled_from([0, values.MOST_PLAIN]))
def test_given_any_plan_then_it_and_its_digest_survive_the_journey_in_both_forms(world: World, most: int) -> None:
    made = world.plan()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "MOST_PLAIN", most)
        encoded = made.encode()
    assert encoded[:1] == (values.PLAIN if most else values.COLUMNS)
    decoded = Plan.decode(encoded)
    assert decoded == made
    assert decoded.digest == made.digest


def test_given_participants_out_of_order_when_a_plan_is_read_in_either_form_then_the_bytes_are_none() -> None:
    tree = msgspec.msgpack.decode(msgspec.msgpack.encode(chained().plan()))
    tree["topology"]["participants"].reverse()
    plain, in_columns = values.PLAIN + msgspec.msgpack.encode(tree), values.COLUMNS + columns.encode(tree)
    for data in (plain, in_columns):
        with pytest.raises(msgspec.DecodeError, match="must have ranks 0, 1, 2"):
            Plan.decode(data)


def test_given_names_that_differ_in_numbers_then_they_take_next_to_no_bytes() -> None:
    names = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj" for layer in range(61) for expert in range(384)]
    assert len(columns.encode(names)) < 1000


@checked(max_examples=200, deadline=None)
@given(st.one_of(st.binary(), VALUES.map(msgspec.msgpack.encode)))
def test_given_other_bytes_then_they_are_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        columns.decode(data)


def test_given_a_plan_that_was_cut_off_or_changed_then_it_is_refused_or_another() -> None:
    made = chained().plan()
    whole = made.encode()
    in_columns = values.COLUMNS + columns.encode(msgspec.msgpack.decode(whole[1:]))
    assert Plan.decode(in_columns) == made
    for bad in (whole[:-9], in_columns[:-9], b"", b"?" + whole[1:], values.COLUMNS + columns.encode({"manifest": 3})):
        with pytest.raises(msgspec.DecodeError):
            Plan.decode(bad)
