"""Commands show a fleet in a browser, and end as they are asked to."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from safetensors.torch import save_file

from ckpt_transport import Config
from ckpt_transport.dashboard import FleetWatch
from ckpt_transport.dashboard.view import member_rows
from ckpt_transport.service.fleet import make_fleet
from tests.fleet import SinkSpec, fleet, weights
from tests.patience import DEADLINE, PATIENT
from tests.support.commands import ENVIRONMENT, Command, run, running
from tests.vllm_stub import StubServer

WITHOUT = """
import sys
sys.modules["uvicorn"] = None
sys.argv = ["ckpt-transport", "dashboard", "ipc:///nowhere"]
from ckpt_transport.cli import main
main()
"""


def url_of(command: Command) -> str:
    """Where a command says that it shows the fleet."""
    deadline = time.monotonic() + DEADLINE
    while not (found := re.search(r"the fleet is shown at (\S+)", command.printed())):
        assert time.monotonic() < deadline, command.errors()
        assert not command.ended(), command.errors()
        time.sleep(0.05)
    return found[1]


def page_with(command: Command, words: str) -> str:
    """The page that a command shows, when it has these words."""
    url, deadline = url_of(command), time.monotonic() + DEADLINE
    while words not in (page := httpx.get(url, timeout=DEADLINE).text):
        assert time.monotonic() < deadline, page
        time.sleep(0.1)
    return page


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_given_a_fleet_when_it_was_updated_and_is_shown_then_the_page_has_both_until_a_signal_comes(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    save_file(weights(2), tmp_path / "v2.safetensors")
    environ = {**ENVIRONMENT, "CKPT_TRANSPORT_HISTORY": str(tmp_path / "history.jsonl")}
    with fleet(SinkSpec()) as (sink,):
        options = f"--checkpoint={tmp_path / 'v2.safetensors'}", "--version=v2", f"--sink={sink.address}"
        assert run("update", *options, environ=environ).returncode == 0
        with running("dashboard", sink.address, "--listen", "127.0.0.1:0", environ=environ) as command:
            page = page_with(command, '1 serves <b class="version">v2</b>')
            assert '<span class="mark good">committed</span>' in page
            command.interrupt(number)
            assert command.wait() == code
            assert command.errors() == ""


def test_given_a_holder_with_a_page_then_that_shows_it_and_goes_with_it(tmp_path: Path) -> None:
    save_file(weights(2), tmp_path / "v2.safetensors")
    options = f"--checkpoint={tmp_path / 'v2.safetensors'}", "--version=v2", "--dashboard=127.0.0.1:0"
    with running("serve", *options) as command:
        page = page_with(command, "holder of v2 at ipc://")
        assert "Roll back" not in page
        command.interrupt(signal.SIGINT)
        assert command.wait() == 130


def test_given_engines_at_endpoints_then_their_sinks_are_found_and_shown() -> None:
    config = Config.load(**PATIENT)
    with StubServer(config) as server:
        with closing(make_fleet("vllm", [server.url], config, "keep", False)) as engines:
            assert engines.sinks() == (server.attached.address,)
        watch = FleetWatch((), config, "vllm", [server.url, "http://127.0.0.1:9"], patience=5.0)
        found, missing = member_rows(watch.look())
        assert (found.place, found.version, found.state) == (server.url, "v1", "serves")
        assert (missing.place, missing.state) == ("http://127.0.0.1:9", "silent")
        assert "127.0.0.1:9" in missing.detail


def test_given_a_token_file_that_others_can_read_then_the_dashboard_does_not_start(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("open sesame, open sesame")
    token.chmod(0o644)
    done = run("dashboard", "ipc:///nowhere", "--token-file", token)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"token file {token} can be read or changed by others" in done.stderr


def test_given_a_place_where_somebody_listens_or_none_then_the_error_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("dashboard", "ipc:///nowhere", "--listen", at)
        assert done.returncode == 1
        assert f"the dashboard cannot listen at {at}: Address already in use" in done.stderr
        assert "give another HOST:PORT" in done.stderr
    for wrong in ("8642", "localhost:", "localhost:99999"):
        assert "must be HOST:PORT" in run("dashboard", "ipc:///nowhere", "--listen", wrong).stderr


def test_given_no_uvicorn_then_the_error_names_the_extra() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1
    assert "the dashboard needs uvicorn, which is not installed: pip install 'ckpt-transport[dashboard]'" in done.stderr
