"""The main job, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from ckpt_transport.memory.segment import PREFIX, SHM
from examples.live_update.result import Result
from examples.llama import checkpoint
from examples.llama.model import ModelConfig

LIMIT = 500.0
"""Seconds; the demonstration promises two minutes, on a machine that does nothing else."""
PATIENCE = 150.0


_pids: set[int] = set()
"""Processes of demonstrations that have been seen."""


@pytest.fixture
def home() -> Iterator[Path]:
    """A place for temporary files with a name short enough for sockets; empty afterwards, as is the shared memory."""
    home = Path(tempfile.mkdtemp(dir="/tmp"))
    yield home
    left = [path for path in home.rglob("*") if not path.is_dir() or path.name.startswith("ckpt-transport-demo-")]
    shutil.rmtree(home)
    assert not left, "files or sockets were left behind"
    assert not orphans(), "shared memory was left behind"


def orphans() -> set[Path]:
    """Shared memory of demonstrations that are gone; its name ends with the process and a random word."""
    return {path for path in SHM.glob(f"{PREFIX}*") if int(path.name.split("-")[-2]) in _pids}


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    """The demonstration in a session of its own, so that its processes can be found."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "examples.live_update", *arguments],
        env={**os.environ, "TMPDIR": str(home), "XDG_RUNTIME_DIR": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    threading.Thread(target=watch, args=(demo,), daemon=True).start()
    return demo


def watch(demo: subprocess.Popen[str]) -> None:
    """Remember its processes, which live for seconds."""
    while demo.poll() is None:
        _pids.update(processes_of(demo.pid))
        time.sleep(0.25)


def processes_of(session: int) -> set[int]:
    """Those that live in a session, without zombies."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.add(int(status.parent.name))
    return found


def wait_for_workers(demo: subprocess.Popen[str]) -> None:
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("listening"):
            return
    pytest.fail("the workers never served")


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_given_a_transport_when_the_demonstration_has_run_then_it_kept_its_promises(
    transport: str, home: Path, tmp_path: Path
) -> None:
    """Given a transport, when the demonstration has run, then it was used, no request failed and every bit is right."""
    trace, result_file = tmp_path / "new" / "trace.json", tmp_path / "result.json"
    demo = start(home, "--transport", transport, "--trace", str(trace), "--json", str(result_file))
    output, _ = demo.communicate(timeout=LIMIT)

    assert demo.returncode == 0, output
    result = read(result_file)
    assert result.problems == ()
    assert result.transport == transport
    assert "why" in result.plan
    assert result.tokens_before != result.tokens_after
    assert list(result.requests) == ["before", "registering v2", "updating", "after"]
    for summary in result.requests.values():
        assert summary.requests >= 1
        assert summary.failed == 0
    assert len(result.paused) == 2
    assert 0 < max(result.paused.values()) < result.update_seconds
    assert [comparison.version for comparison in result.comparisons] == ["v1", "v2"]
    for comparison in result.comparisons:
        assert comparison.workers == 2
        assert comparison.mismatches == {}
        assert comparison.elements * 4 >= result.nbytes
    read_anew = "A model that is read anew from the files of v2, and not split, gives the same tokens."
    for part in (f"{transport} was chosen", "update to v2: ", "Timeline", read_anew, result.verdict, str(trace)):
        assert part in output
    complete = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    assert len(complete) == result.events > 0
    assert wait_until(lambda: not processes_of(demo.pid), PATIENCE)


def test_given_keep_when_the_demonstration_has_run_then_both_checkpoints_are_complete(
    home: Path, tmp_path: Path
) -> None:
    """Given --keep, when the demonstration has run, then both versions are there as Hugging Face directories."""
    kept = tmp_path / "kept"
    demo = start(home, "--keep", str(kept), "--trace", str(tmp_path / "trace.json"))
    output, _ = demo.communicate(timeout=LIMIT)

    assert demo.returncode == 0, output
    for version in ("v1", "v2"):
        assert checkpoint.read_config(kept / version) == ModelConfig()
        shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.read(kept / version)}
        assert shapes == checkpoint.shapes(ModelConfig())


def test_given_an_unknown_transport_then_it_is_refused_before_anything_starts(home: Path) -> None:
    """Given a name that no plugin has, then the names there are are listed, and nothing was started."""
    demo = start(home, "--transport", "pigeon")
    output, _ = demo.communicate(timeout=LIMIT)

    assert demo.returncode == 1
    assert "pigeon" in output
    assert "shm" in output
    assert "worker" not in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_given_workers_that_serve_when_it_is_interrupted_then_nothing_is_left_behind(
    number: int, home: Path, tmp_path: Path
) -> None:
    """Given a signal while workers serve, then the demonstration ends with all its processes and files."""
    demo = start(home, "--trace", str(tmp_path / "trace.json"))
    with demo:
        wait_for_workers(demo)
        demo.send_signal(number)
        demo.communicate(timeout=LIMIT)
    assert demo.returncode > 0
    assert wait_until(lambda: not processes_of(demo.pid), PATIENCE)


def test_given_workers_that_serve_when_the_demonstration_is_killed_then_they_end_by_themselves(
    tmp_path: Path, home: Path
) -> None:
    """Given that the demonstration is killed while workers serve, then they end by themselves."""
    demo = start(tmp_path, "--trace", str(tmp_path / "trace.json"))
    with demo:
        wait_for_workers(demo)
        assert len(processes_of(demo.pid)) >= 3
        demo.kill()
        assert wait_until(lambda: not processes_of(demo.pid), PATIENCE)


def read(path: Path) -> Result:
    return msgspec.json.decode(path.read_bytes(), type=Result)
