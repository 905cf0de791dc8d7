"""The protocol of an update stands in one table, and one file makes introductions."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ckpt_transport
from ckpt_transport.control import Message
from ckpt_transport.service import questions as q
from ckpt_transport.update import messages as m
from ckpt_transport.update.protocol import EXCHANGES, State

CORE = Path(ckpt_transport.__file__).parent
SAID = [kind for kind in vars(m).values() if isinstance(kind, type) and issubclass(kind, Message)]


def is_made_in(file: Path, name: str) -> bool:
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    return any(
        (isinstance(called, ast.Attribute) and called.attr == name)
        or (isinstance(called, ast.Name) and called.id == name)
        for called in calls
    )


def test_given_the_orders_of_an_update_then_each_has_one_row_of_the_table() -> None:
    orders = [kind for kind in SAID if issubclass(kind, m.Order) and kind is not m.Order]
    assert sorted(kind.__name__ for kind in orders) == sorted(row.order.__name__ for row in EXCHANGES)


def test_given_the_table_then_each_answer_is_what_its_order_asks_for() -> None:
    for row in EXCHANGES:
        assert vars(row.order)["__orig_bases__"] == (m.Order[row.answer],)  # type: ignore[name-defined]


def test_given_a_message_then_the_side_that_it_is_for_understands_it() -> None:
    said = {kind for kind in SAID if not kind.__subclasses__()}
    assert said == {*m.TO_MEMBERS, *m.TO_COORDINATORS}
    assert {*m.TO_MEMBERS} < {*q.PARTICIPANT}
    assert {*m.TO_COORDINATORS} < {*q.COORDINATOR}


@pytest.mark.parametrize("state", State)
def test_given_a_state_of_a_member_then_an_order_leads_into_it_and_another_out_of_it(state: State) -> None:
    assert any(row.then is state for row in EXCHANGES)
    onward = [row for row in EXCHANGES if state in row.during and row.order not in (m.Halt, m.Abort)]
    assert bool(onward) is (state not in (State.COMMITTED, State.DISMISSED))


def test_given_the_core_then_one_file_makes_introductions() -> None:
    assert [file.name for file in CORE.rglob("*.py") if is_made_in(file, "Join")] == ["introduction.py"]


def test_given_a_step_of_an_update_then_each_of_its_sides_is_in_one_file() -> None:
    """So that a new order touches the messages, the table, and these two files."""
    steps = [row for row in EXCHANGES if row.order not in (m.Invite, m.Commit, m.Dismiss, m.Halt, m.Abort)]
    words = {kind.__name__ for row in steps for kind in (row.order, row.answer)}
    naming = {
        file.name
        for file in CORE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "m"
        and node.attr in words
    }
    assert naming == {"protocol.py", "leading.py", "following.py"}
