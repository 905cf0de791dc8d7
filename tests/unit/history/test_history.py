"""What became of updates is appended to a file, by several processes, and read by another one while it grows."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import msgspec
import pytest

from ckpt_transport.errors import ConfigError
from ckpt_transport.events import UpdateEnded
from ckpt_transport.execution import StageEvent
from ckpt_transport.history import History, check_history, keep, timeline_of, writer
from ckpt_transport.planning import StageKind
from tests.patience import DEADLINE

LABELS = {0: "source 0", 1: "sink 0"}


def ended(update: str, version: str = "v2") -> UpdateEnded:
    return UpdateEnded(at=1.0, update=update, kind="update", version=version, outcome="committed", seconds=0.5)


def names(history: History) -> list[str]:
    return [past.ended.update for past in history.updates()]


def keep_many(path: Path, first: int, number: int) -> None:
    for update in range(first, first + number):
        keep(str(path), ended(str(update)), [StageEvent(0, StageKind.FILL, 0, 1.0, 2.0)], LABELS)


def test_given_a_history_that_grows_then_its_reader_finds_the_newest_first_and_each_once(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    assert names(history) == []
    keep_many(path, 0, 2)
    assert names(history) == ["1", "0"]
    keep_many(path, 2, 1)
    assert names(history) == names(history) == ["2", "1", "0"]
    found = history.find("1")
    assert found is not None
    assert found.ended == ended("1")
    assert found.timeline is not None
    assert history.find("3") is None


def test_given_more_updates_than_are_shown_then_the_last_hundred_are(tmp_path: Path) -> None:
    keep_many(tmp_path / "history.jsonl", 0, 130)
    assert names(History(tmp_path / "history.jsonl")) == [str(update) for update in range(129, 29, -1)]


def test_given_processes_that_write_at_the_same_time_then_no_line_is_lost_or_torn(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=keep_many, args=(path, 25 * number, 25)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(DEADLINE)
        assert process.exitcode == 0
    assert sorted(map(int, names(History(path)))) == list(range(75))
    assert len(path.read_bytes().splitlines()) == 150


def test_given_a_file_that_is_full_then_it_goes_on_in_a_new_one_and_a_reader_misses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.jsonl"
    watching = History(path)
    monkeypatch.setattr(writer, "FULL", 2000)
    for update in range(40):
        keep_many(path, update, 1)
        assert names(watching)[0] == str(update)
    assert names(watching) == [str(update) for update in range(39, -1, -1)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["history.jsonl", "history.jsonl.1"]
    assert (tmp_path / "history.jsonl.1").stat().st_size < 4000
    since = names(History(path))
    assert since == names(watching)[: len(since)]
    assert len(since) > 5


@pytest.mark.parametrize("line", [b'{"event":"update_en', b'{"event":"of_a_later_release","at":1.0}', b"\xff\x00"])
def test_given_a_line_that_cannot_be_read_then_those_around_it_are(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "history.jsonl"
    keep_many(path, 0, 1)
    with path.open("ab") as file:
        file.write(line)
    keep_many(path, 1, 1)
    assert names(History(path)) == ["1", "0"]


def test_given_a_line_that_is_being_written_then_it_is_read_when_it_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    line, history = msgspec.json.encode(ended("5f0c")), History(path)
    path.write_bytes(line[:40])
    assert names(history) == []
    path.write_bytes(line + b"\n")
    assert names(history) == ["5f0c"]


def test_given_a_disk_that_takes_nothing_then_the_update_has_ended_and_that_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keep("/dev/full", ended("5f0c"))
    assert "what became of 'v2' cannot be appended to /dev/full: " in caplog.text
    assert "No space left" in caplog.text


def test_given_a_place_that_cannot_be_written_then_the_error_names_it(tmp_path: Path) -> None:
    check_history("")
    check_history(str(tmp_path / "new" / "history.jsonl"))
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "history.jsonl"):
        with pytest.raises(ConfigError, match=f"history {place} .*choose another place"):
            check_history(str(place))
    with pytest.raises(ConfigError, match="NUL"):
        check_history("a\0b")


def test_given_stages_that_lie_close_together_then_they_are_one_span_of_the_timeline() -> None:
    events = [
        StageEvent(1, StageKind.APPLY, bucket, 100.0 + bucket * 0.01, 100.009 + bucket * 0.01) for bucket in range(100)
    ]
    events += [StageEvent(0, StageKind.FILL, 0, 100.0, 100.1), StageEvent(0, StageKind.FILL, 1, 100.9, 101.0)]
    timeline = timeline_of("5f0c", 1.0, events, LABELS)
    assert timeline is not None
    assert timeline.seconds == pytest.approx(1.0)
    assert [(row.label, row.kind, row.spans) for row in timeline.rows] == [
        ("source 0", "fill", ((0.0, 0.1), (0.9, 1.0))),
        ("sink 0", "apply", ((0.0, 0.999),)),
    ]


def test_given_many_ranks_and_stages_then_the_timeline_stays_small() -> None:
    labels = {rank: f"sink {rank}" for rank in range(200)}
    events = [
        StageEvent(rank, kind, bucket, bucket * 1.0, bucket * 1.0 + 0.001)
        for rank in labels
        for kind in StageKind
        for bucket in range(60)
    ]
    timeline = timeline_of("5f0c", 1.0, events, labels)
    assert timeline is not None
    assert len(msgspec.json.encode(timeline)) < 100_000
    assert timeline.more == 184
    assert {row.label for row in timeline.rows} == {f"sink {rank}" for rank in range(16)}


def test_given_no_stage_then_there_is_no_timeline() -> None:
    assert timeline_of("5f0c", 1.0, [], LABELS) is None
