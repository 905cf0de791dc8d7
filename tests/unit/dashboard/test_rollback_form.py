"""The fleet is rolled back by whoever has the token and has seen what it serves, and by nobody else."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ckpt_transport.dashboard import Rollback, read_token
from ckpt_transport.dashboard import rollback as module
from ckpt_transport.dashboard.fleet_watch import FRESH_SECONDS
from ckpt_transport.errors import ConfigError, UpdateAbortedError
from tests.patience import DEADLINE
from tests.support.pages import TOKEN, Shown, shown
from tests.unit.dashboard.test_pages import words


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Shown]:
    """One that serves ``v3`` and can go back to ``v2``."""
    with shown(token=TOKEN, history=tmp_path / "history.jsonl") as shown_fleet:
        shown_fleet.bring("v2", 2)
        shown_fleet.bring("v3", 3)
        yield shown_fleet


def form(fleet: Shown) -> str:
    """The name of a new form."""
    found = re.search(r'name="form" value="([^"]+)"', fleet.page("/rollback"))
    assert found is not None
    return found[1]


def send(fleet: Shown, name: str, token: str = TOKEN, **headers: str) -> httpx.Response:
    return fleet.client.post("/rollback", data={"form": name, "token": token}, headers=headers)


def ask_anew() -> None:
    """Wait until the page does not show the last answers of the fleet again."""
    time.sleep(FRESH_SECONDS + 0.1)


def served(fleet: Shown) -> set[str]:
    return {sink.version for sink in fleet.sinks}


def test_given_the_token_when_a_form_is_sent_then_all_sinks_serve_the_version_before(fleet: Shown) -> None:
    shown_form = words(fleet.page("/rollback"))
    assert "Roll back to v2 ?" in shown_form
    assert "sink 0 v3 v2 sink 1 v3 v2" in shown_form
    done = send(fleet, form(fleet), **{"sec-fetch-site": "same-origin"})
    assert (done.status_code, done.headers["location"]) == (303, "/#rollback")
    assert served(fleet) == {"v2"}
    page = words(fleet.page())
    assert "The fleet serves the version before again" in page
    assert "v2 rollback committed" in page


def test_given_a_wrong_token_then_nothing_is_done_and_the_next_guess_has_to_wait(
    fleet: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GUESS_SECONDS", DEADLINE)
    name = form(fleet)
    refused = send(fleet, name, "open sesame")
    assert refused.status_code == 403
    assert "Nothing was done: that is not the token." in words(refused.text)
    assert send(fleet, name).status_code == 429
    assert served(fleet) == {"v3"}


def test_given_a_form_that_was_used_or_is_none_then_nothing_is_done(fleet: Shown) -> None:
    name = form(fleet)
    assert send(fleet, name).status_code == 303
    for again in (name, "", "made up"):
        refused = send(fleet, again)
        assert refused.status_code == 403
        assert "this form was used already, or is too old" in refused.text
    assert served(fleet) == {"v2"}


def test_given_a_form_that_is_too_old_then_nothing_is_done(fleet: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORM_SECONDS", -1.0)
    assert send(fleet, form(fleet)).status_code == 403
    assert served(fleet) == {"v3"}


def test_given_a_fleet_that_has_changed_since_the_form_then_nothing_is_done(fleet: Shown) -> None:
    name = form(fleet)
    fleet.bring("v4", 4)
    ask_anew()
    refused = send(fleet, name)
    assert refused.status_code == 409
    assert "the fleet has changed since the form was shown" in refused.text
    assert served(fleet) == {"v4"}


def test_given_a_form_that_another_site_sends_then_nothing_is_done(fleet: Shown) -> None:
    name = form(fleet)
    for header, value in [
        *(("sec-fetch-site", value) for value in ("cross-site", "same-site", "none")),
        *(("origin", value) for value in ("http://evil.example", "null")),
    ]:
        refused = send(fleet, name, **{header: value})
        assert refused.status_code == 403
        assert "was sent by a page of another site" in refused.text
    assert served(fleet) == {"v3"}


def test_given_a_form_that_is_too_large_then_it_is_not_read(fleet: Shown) -> None:
    assert send(fleet, "x" * 5000).status_code == 413
    assert served(fleet) == {"v3"}


def test_given_a_sink_that_is_gone_then_the_form_says_that_the_fleet_cannot_go_back() -> None:
    with shown(token=TOKEN, patience=1.0) as fleet:
        fleet.bring("v2", 2)
        fleet.bring("v3", 3)
        fleet.sinks[1].close()
        page = fleet.page("/rollback")
        assert "This fleet cannot go back" in page
        assert "no answer nothing kept" in words(page)
        assert 'name="token"' not in page


def test_given_an_error_of_the_rollback_then_it_is_what_is_said() -> None:
    def fail() -> tuple[str, ...]:
        raise UpdateAbortedError("sink 1 is gone")

    rollback = Rollback(TOKEN.encode(), fail)
    rollback.run(rollback.form("as it was"), f" {TOKEN}\n", lambda: "as it was")
    assert (rollback.said, rollback.failed) == ("UpdateAbortedError: sink 1 is gone", True)


def test_given_two_who_send_at_the_same_time_then_one_rollback_is_made() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def act() -> tuple[str, ...]:
        begun.set()
        assert may_end.wait(DEADLINE)
        return ("sink 3 died",)

    rollback = Rollback(TOKEN.encode(), act)
    names = [rollback.form(""), rollback.form("")]
    first = threading.Thread(target=rollback.run, args=(names[0], TOKEN, lambda: ""))
    first.start()
    assert begun.wait(DEADLINE)
    with pytest.raises(module.NotAllowedError, match="another rollback is under way"):
        rollback.run(names[1], TOKEN, lambda: "")
    may_end.set()
    first.join(DEADLINE)
    assert rollback.said == "The fleet serves the version before again; sink 3 died"


def test_given_many_forms_then_the_last_ones_are_good() -> None:
    rollback = Rollback(TOKEN.encode(), lambda: ())
    names = [rollback.form("") for _ in range(module.MOST_FORMS + 1)]
    with pytest.raises(module.NotAllowedError):
        rollback.run(names[0], TOKEN, lambda: "")
    rollback.run(names[1], TOKEN, lambda: "")


def test_given_no_token_then_the_page_only_shows() -> None:
    with shown() as fleet:
        fleet.bring("v2")
        fleet.bring("v3")
        assert "Roll back" not in fleet.page()
        for answer in (fleet.client.get("/rollback"), send(fleet, "", "")):
            assert answer.status_code == 403
            assert "start the dashboard with --token-file" in answer.text
        assert served(fleet) == {"v3"}


def test_given_a_token_file_then_only_its_owner_may_read_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(ConfigError, match=f"token file {file}: No such file"):
        read_token(file)
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o640)
    with pytest.raises(ConfigError, match=r"can be read or changed by others .*; chmod 600 it"):
        read_token(file)
    file.chmod(0o600)
    assert read_token(file) == TOKEN.encode()
    file.write_text("short\n")
    with pytest.raises(ConfigError, match="has 5 bytes; at least 16 are needed, as from 'openssl rand -hex 32 > "):
        read_token(file)
