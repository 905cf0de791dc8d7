"""The launcher: every end of a process is reported, a hang is named, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from ckpt_transport.testing import HangError, Launcher, launch, launch_in_threads
from tests.conformance import bodies
from tests.patience import with_enough_seconds

DEADLINE = 150.0
LAUNCHERS = pytest.mark.parametrize("launcher", [launch, launch_in_threads], ids=["processes", "threads"])


@LAUNCHERS
def test_given_several_ranks_then_each_returns_its_value(launcher: Launcher) -> None:
    outcomes = launcher(bodies.answer, 3, "rank", deadline=DEADLINE)
    assert [outcome.value for outcome in outcomes] == ["rank 0 of 3", "rank 1 of 3", "rank 2 of 3"]
    assert all(outcome.ok for outcome in outcomes)


@LAUNCHERS
def test_given_several_ranks_then_they_can_talk(launcher: Launcher) -> None:
    everything = {0: b"from 0", 1: b"from 1", 2: b"from 2"}
    assert [outcome.value for outcome in launcher(bodies.talk, 3, deadline=DEADLINE)] == [everything] * 3


def test_given_several_ranks_then_they_are_other_processes() -> None:
    outcomes = launch(bodies.process_id, 2, deadline=DEADLINE)
    assert len({os.getpid(), *(outcome.value for outcome in outcomes)}) == 3


def test_given_ranks_that_crash_then_each_crash_is_reported_and_the_others_go_on() -> None:
    fine, raised, killed, left, unpicklable = launch(bodies.crash_in_many_ways, 5, deadline=DEADLINE)
    assert fine.value == "fine"
    assert raised.failure is not None
    assert (raised.failure.kind, raised.failure.message) == ("ValueError", "no reason")
    assert "in crash_in_many_ways" in raised.failure.traceback
    assert killed.died is signal.SIGSEGV
    assert left.exit_code == 7
    assert unpicklable.failure is not None
    assert "lock" in unpicklable.failure.traceback
    assert not any(outcome.ok for outcome in (raised, killed, left, unpicklable))


@LAUNCHERS
def test_given_a_rank_that_hangs_then_it_is_named_with_its_stack(launcher: Launcher) -> None:
    def is_named(seconds: float) -> bool:
        with pytest.raises(HangError) as caught:
            launcher(bodies.hang_in_rank_1, 3, deadline=seconds)
        if list(caught.value.stacks) != [1]:
            return False
        assert "ranks [1] still ran" in str(caught.value)
        assert "in wait_for_ever" in caught.value.stacks[1]
        assert "in wait_for_ever" in str(caught.value)
        assert {outcome.rank: outcome.value for outcome in caught.value.outcomes} == {0: "fine", 2: "fine"}
        return True

    with_enough_seconds(is_named)


def test_given_a_parent_when_it_is_killed_then_its_children_die(tmp_path: Path) -> None:
    parent = bodies.start_parent(tmp_path)
    try:
        children = [int(file.read_text()) for file in _wait_for(tmp_path, 2)]
        assert all(_alive(child) for child in children)
    finally:
        parent.kill()
        parent.wait()
    end = time.monotonic() + DEADLINE
    while any(_alive(child) for child in children):
        assert time.monotonic() < end, "a child outlived its parent"
        time.sleep(0.01)


def _wait_for(folder: Path, count: int) -> list[Path]:
    end = time.monotonic() + DEADLINE
    while len(found := list(folder.glob("*.pid"))) < count:
        assert time.monotonic() < end, "the children did not start"
        time.sleep(0.01)
    return found


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
