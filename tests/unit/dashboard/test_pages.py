"""What the page says of a fleet, over HTTP."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from ckpt_transport.control.addresses import new_ipc_address
from ckpt_transport.dashboard import fleet_watch
from ckpt_transport.events import UpdateEnded
from ckpt_transport.execution import StageEvent
from ckpt_transport.history import keep
from ckpt_transport.planning import StageKind
from ckpt_transport_torch import TorchEngine
from tests.fleet import model
from tests.patience import DEADLINE
from tests.support.pages import TOKEN, Shown, shown
from tests.support.slow import SlowEngine

HOSTILE = "<script>document.title='owned'</script>\"'><img src=x onerror=\"document.title='owned'\">{{7*7}}"


def words(html: str) -> str:
    """What a person reads of a page."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html)).strip()


def wait_for(fleet: Shown, condition: Callable[[str], bool]) -> str:
    deadline = time.monotonic() + DEADLINE
    while not condition(page := fleet.page()):
        assert time.monotonic() < deadline, words(page)
        time.sleep(0.1)
    return page


def test_given_two_sinks_when_a_version_comes_then_the_page_says_who_serves_it_since_when() -> None:
    with shown() as fleet:
        before = words(fleet.page("/"))
        assert "All 2 serve v1" in before
        assert "sink 0 serves v1 20" in before
        fleet.bring("step-2")
        after = words(wait_for(fleet, lambda page: "All 2 serve <b" in page and "step-2" in page))
        assert re.search(r"sink 1 serves step-2 \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \d+ s v1 ipc://", after)
        assert "No history is kept" in after


def test_given_an_update_that_runs_then_the_page_says_how_many_bytes_have_come_over_each_link() -> None:
    slow = SlowEngine(model(1, 6))
    with shown(slow) as fleet:
        update = threading.Thread(target=fleet.bring, args=("step-2",))
        slow.waits_at = 1
        update.start()
        try:
            page = words(wait_for(fleet, lambda page: "is on its way" in page and "source 0" in page))
            assert "step-2 is on its way" in page
            assert re.search(r"source 0 sink 0 shm \S+ \S+ [\d.]+ MiB \S+ \S+/s", page)
            assert "gets step-2" in page
            assert "Roll back" not in page
        finally:
            slow.may_go_on.set()
            update.join(DEADLINE)
        assert "is on its way" not in wait_for(fleet, lambda page: "1 serves" in words(page) and "gets" not in page)


def test_given_a_member_that_does_not_answer_then_it_is_named_with_the_reason() -> None:
    nobody = new_ipc_address()
    with shown(others=[nobody], patience=1.0) as fleet:
        page = words(wait_for(fleet, lambda page: "2 serve" in page))
        assert f"1 of 3 needs you: {nobody} is silent" in page
        assert f"no answer from {nobody} within 1 s; is a sink running there?" in page
        assert "2 serve v1" in page
        assert "All" not in page


def test_given_updates_that_are_kept_then_each_has_its_row_and_its_own_page(tmp_path: Path) -> None:
    with shown(history=tmp_path / "history.jsonl") as fleet:
        assert "No update has ended" in fleet.page()
        fleet.bring("step-2")
        fleet.bring("step-3")
        page = fleet.page()
        assert words(page).index("step-3 committed") < words(page).index("step-2 committed")
        links = re.findall(r'href="(/updates/\w+)"', page)
        assert len(links) == 2
        one = fleet.page(links[0])
        assert re.search(r"step-3 committed .* took [\d.]+ m?s pause [\d.]+ .?s bytes [\d.]+ MiB over shm", words(one))
        assert "source 0 transfer" in words(one)
        assert re.search(r'<rect class="apply" x="[\d.]+" width="[\d.]+" y="2"', one)
        assert re.search(r'<rect class="hold" x="[\d.]+" width="[\d.]+" height="28"><title>hold: ', one)


def test_given_an_update_in_place_then_the_picture_shows_that_requests_are_held_while_bytes_move(
    tmp_path: Path,
) -> None:
    path = tmp_path / "history.jsonl"
    phases = {"plan": 0.1, "hold": 0.1, "run": 0.7, "commit": 0.1, "end": 0.1}
    keep(
        str(path),
        UpdateEnded(at=1, update="1", kind="update", version="v", outcome="committed", seconds=1, phases=phases),
    )
    with shown(history=path) as fleet:
        page = fleet.page("/updates/1")
        assert "<title>run: 700 ms, while requests are held</title>" in page
        assert "<title>end: 100 ms</title>" in page
        assert page.count('y="18" height="10"') == 3


def test_given_a_history_that_cannot_be_read_or_has_no_such_update_then_the_page_says_so(tmp_path: Path) -> None:
    with shown(history=tmp_path / "history.jsonl") as fleet:
        missing = fleet.client.get("/updates/5f0c")
        assert missing.status_code == 404
        assert "no update &#39;5f0c&#39; is among the last hundred" in missing.text
        (tmp_path / "history.jsonl").unlink(missing_ok=True)
        (tmp_path / "history.jsonl").mkdir()
        assert "The history cannot be read: Is a directory" in fleet.page()
        assert fleet.client.get("/updates/5f0c").status_code == 500


def test_given_names_that_are_html_then_every_page_shows_them_as_text(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    ended = UpdateEnded(
        at=1.0,
        update=HOSTILE,
        kind=HOSTILE,
        version=HOSTILE,
        outcome=HOSTILE,
        seconds=1.0,
        phases={HOSTILE: 1.0},
        held={HOSTILE: 1.0},
        transports=(HOSTILE,),
        lost=(HOSTILE,),
        reason=HOSTILE,
    )
    keep(str(path), ended, [StageEvent(0, StageKind.FILL, 0, 1.0, 2.0)], {0: HOSTILE})
    with shown(TorchEngine(model(1), "", HOSTILE), history=path, token=TOKEN, version=HOSTILE) as fleet:
        fleet.bring("v2")
        name = re.search(r'href="(/updates/%3C[^"]*)"', fleet.page())
        assert name is not None
        for page, status in {"/": 200, "/live": 200, "/rollback": 200, name[1]: 200, f"{name[1]}x": 404}.items():
            answer = fleet.client.get(page)
            assert answer.status_code == status
            assert "&lt;script&gt;" in answer.text
            assert "<script>" not in answer.text
            assert "<img src=x" not in answer.text
            assert "{{7*7}}" in answer.text


def test_given_any_page_then_browsers_are_told_to_load_nothing_from_elsewhere() -> None:
    with shown() as fleet:
        for path in ("/", "/live", "/rollback", "/updates/5f0c", "/static/style.css", "/nowhere"):
            answer = fleet.client.get(path)
            assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert not re.findall(r'(?:src|href|action)="(?!/|#)', answer.text)
            assert " style=" not in answer.text


def test_given_a_page_for_this_host_when_it_is_asked_for_by_another_name_then_it_is_not_shown() -> None:
    with shown() as fleet:
        for host, status in {
            "evil.example:8642": 421,
            "127.0.0.1.evil.example": 421,
            "": 421,
            "localhost:8642": 200,
            "127.0.0.1:1": 200,
            "[::1]:8642": 200,
        }.items():
            answer = fleet.client.get("/live", headers={"host": host})
            assert answer.status_code == status, host
            assert ("sink 0" in answer.text) == (status == 200)


def test_given_many_who_look_then_the_fleet_is_asked_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_watch, "FRESH_SECONDS", DEADLINE)
    with shown() as fleet, httpx.Client(base_url=fleet.url, timeout=DEADLINE) as other:
        fleet.page()
        fleet.sinks[0].close()
        assert "All 2 serve v1" in words(other.get("/live").text)
