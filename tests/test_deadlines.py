"""Tests that hang, in sessions of their own that have the project's settings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import with_enough_seconds

ROOT = Path(__file__).parent.parent
HANGING = """
import threading
import pytest

hangs = pytest.mark.timeout(SECONDS)

def waits_elsewhere(event):
    event.wait()

@hangs
def test_waits():
    event = threading.Event()
    threading.Thread(target=waits_elsewhere, args=(event,), daemon=True).start()
    try:
        event.wait()
    finally:
        event.set()

@hangs
def test_catches_everything_once():
    try:
        threading.Event().wait()
    except BaseException:
        threading.Event().wait()

@hangs
def test_never_ends_to_count():
    while True:
        sum(range(1000))

@pytest.fixture
def hangs_afterwards():
    yield
    threading.Event().wait()

@hangs
def test_fails_and_then_hangs(hangs_afterwards):
    raise ValueError

def test_comes_after():
    pass
"""
STUCK = """
import ctypes
import pytest

@pytest.mark.timeout(SECONDS)
def test_never_comes_back_from_a_library():
    lock = ctypes.PyDLL(None).pthread_mutex_lock  # keeps Python's own lock, too
    mutex = ctypes.create_string_buffer(256)
    lock(mutex)
    lock(mutex)

def test_comes_after():
    pass
"""


def session(folder: Path, tests: str, seconds: float, *options: str) -> tuple[str, str]:
    """What pytest prints on stdout and stderr for these tests, each of which gets so many seconds."""
    file = folder / "test_hanging.py"
    file.write_text(f"SECONDS = {seconds}\n{tests}")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        ROOT / "pyproject.toml",
        "-p",
        "tests.deadlines",
        "-v",
        file,
    ]
    command += ["-o", f"timeout_grace={seconds}", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=ROOT)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["by-itself", "by-a-worker"])
def test_given_tests_that_hang_then_each_fails_with_its_stacks_and_the_others_pass(
    tmp_path: Path, options: tuple[str, ...]
) -> None:

    def is_told_of_each(seconds: float) -> bool:
        printed, _ = session(tmp_path, HANGING, seconds, *options)
        told = printed.count(f"the test has run for {seconds:g} s, and hangs")
        return "4 failed, 1 passed, 1 error" in printed and told >= 4 and "in waits_elsewhere" in printed

    with_enough_seconds(is_told_of_each, 0.5)


def test_given_a_test_that_hangs_in_a_library_then_its_process_ends_with_its_stack_and_the_next_test_runs(
    tmp_path: Path,
) -> None:

    def is_told_where(seconds: float) -> bool:
        printed, errors = session(tmp_path, STUCK, seconds, "-n", "1")
        return "in test_never_comes_back_from_a_library" in errors and "1 failed, 1 passed" in printed

    with_enough_seconds(is_told_where, 0.5)
