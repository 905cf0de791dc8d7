"""Pieces of work are taken by all cores, and what is made of them keeps its order."""

from __future__ import annotations

import threading

import pytest

from ckpt_transport.deltas import all_cores
from ckpt_transport.deltas.all_cores import by_all_cores


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_cores, "usable_cores", lambda: 4)


@pytest.mark.usefixtures("four_cores")
def test_given_many_pieces_then_what_is_made_of_them_keeps_their_order() -> None:
    assert by_all_cores(lambda number: number**2, range(1000)) == [number**2 for number in range(1000)]
    assert by_all_cores(str, []) == []
    assert by_all_cores(str, [7]) == ["7"]


@pytest.mark.usefixtures("four_cores")
def test_given_a_piece_that_fails_then_its_error_is_raised_and_no_other_is_begun_after_it() -> None:
    begun: list[int] = []
    failed = threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        if number == 5:
            failed.set()
            raise IndexError("five")
        if number > 5:
            assert failed.wait(30)

    with pytest.raises(IndexError, match="five"):
        by_all_cores(work, range(100_000))
    assert len(begun) < 100_000
