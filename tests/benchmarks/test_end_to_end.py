"""The benchmark of whole updates runs on a CPU, too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import end_to_end, picture
from benchmarks._attempts import Attempts
from benchmarks._row import Row
from benchmarks._weighted_sums import weighted_sum
from benchmarks.end_to_end import Chosen, Commit, Device, Name, Scale, measure, situations

SMALL = Chosen(Device.CPU, Scale.SMALL)


def test_given_no_gpu_when_a_small_situation_is_measured_then_each_variant_has_a_row_with_its_figures() -> None:
    attempts = Attempts()
    rows = list(measure([Name.HOST_DENSE], SMALL, rounds=1, attempts=attempts))
    title = situations(SMALL)[Name.HOST_DENSE].title
    staged, named = "auto, staged if possible", "shm, staged if possible"
    assert [row.name for row in rows] == [f"{title}: {name}" for name in (staged, "auto, in place", named, staged)]
    assert [row.against for row in rows] == ["a plain copy in memory"] * 3 + ["shm by name"]
    assert all(row.ratio > 0 and "held" in row.detail and "wrong: 0 of 25" in row.detail for row in rows[:3])
    assert all(list(row.phases) == ["warm-up", "first", "median"] for row in rows[:3])
    assert rows[1].phases["median"]["run"] > 0
    assert attempts.failed == []


@pytest.mark.parametrize("name", [Name.LENT_HERE, Name.TWO_DENSE])
def test_given_weights_that_are_lent_or_of_two_trainers_when_they_are_brought_then_every_worker_is_right(
    name: Name,
) -> None:
    chosen = SMALL._replace(commits=(Commit.AUTO,), by=("shm",))
    (row,) = measure([name], chosen, rounds=1, attempts=Attempts())
    assert row.name.endswith(": shm, staged if possible")


def test_given_no_time_is_left_then_a_row_is_named_and_a_trace_still_shows_what_the_worker_did(tmp_path: Path) -> None:
    trace, drawn, kept = tmp_path / "trace.json", tmp_path / "trace.svg", tmp_path / "rows.json"
    arguments = ["--device", "cpu", "--scale", "small", "--only", "register-cpu", "--seconds", "0"]
    app = typer.Typer()
    app.command()(end_to_end.main)
    done = CliRunner().invoke(app, [*arguments, "--trace", str(trace), "--json", str(kept)])
    assert done.exit_code == 0, done.output
    assert "register-cpu: not run: 0 s are over" in done.output
    assert not kept.exists()
    events = json.loads(trace.read_text())["traceEvents"]
    assert "CPU of the worker" in {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert min(event["ts"] for event in events if event["ph"] == "X") == 0
    picture.main(trace, drawn)
    assert all(word in drawn.read_text() for word in ("calls of torch", "apply", " ms</text>"))


def test_given_what_cannot_be_measured_then_it_is_named_the_next_is_and_the_exit_status_says_so() -> None:
    attempts = Attempts()
    row = Row("whole", 1.0, "itself", "", "")

    def broken() -> Iterator[Row]:
        yield row
        raise TimeoutError("a process of the benchmark does not answer")

    assert [*attempts.rows("broken", broken()), *attempts.rows("whole", iter([row]))] == [row, row]
    assert attempts.failed == ["broken"]
    with pytest.raises(typer.Exit):
        attempts.end()


def test_given_words_that_change_or_trade_places_then_their_weighted_sum_does() -> None:
    words = torch.arange(100_003, dtype=torch.int16)
    found = weighted_sum(words)
    assert weighted_sum(words.clone()) == found
    for places in ([100_002, 100_001], [0, 4], [8, 50_000]):
        traded = words.clone()
        traded[places] = words[places[::-1]]
        assert weighted_sum(traded) != found
    assert weighted_sum(words[1:]) == weighted_sum(words[1:].clone())
