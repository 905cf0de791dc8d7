"""Named shared memory: who may map it, how long it lives, and that nothing of it is left behind."""

from __future__ import annotations

import gc
import os
import secrets
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from ckpt_transport.errors import SharedMemoryError
from ckpt_transport.memory import Buffer, MemoryKind, Segment, SegmentName, sweep_leftovers
from ckpt_transport.memory.segment import PREFIX, SHM, free_shared_memory
from tests.leftovers import swept


@pytest.fixture
def place() -> Iterator[Path]:
    """A path in shared memory where a test may put something."""
    path = SHM / f"test-segment-{os.getpid()}-{secrets.token_hex(4)}"
    yield path
    if path.is_symlink() or path.exists():
        path.unlink()


def run(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


# -- lifetimes


def test_given_a_segment_then_whoever_has_its_name_sees_what_its_owner_writes() -> None:
    owned = Segment.create(1000)
    owned.reserve(0, 1000)
    owned.tensor().copy_(torch.arange(1000) % 251)
    attached = Segment.attach(owned.name)
    assert torch.equal(attached.tensor(), owned.tensor())
    owned.tensor()[7] = 99
    assert attached.tensor()[7] == 99
    assert attached.tensor()[:3].tolist() == [0, 1, 2]
    attached.close()
    assert owned.path.exists()
    assert owned.still_named()
    owned.close()
    assert not owned.path.exists()
    assert not attached.still_named()


def test_given_views_then_they_stay_readable_after_the_segment_is_closed() -> None:
    owned = Segment.create(4096)
    attached = Segment.attach(owned.name)
    ours, theirs = owned.tensor(), attached.tensor()
    ours.fill_(42)
    owned.close()
    attached.close()
    gc.collect()
    assert ours.eq(42).all()
    assert theirs.eq(42).all()


def test_given_a_closed_segment_then_it_can_be_closed_again_and_not_used() -> None:
    segment = Segment.create(10)
    assert not segment.closed
    segment.close()
    segment.close()
    assert segment.closed
    for use in (segment.tensor, lambda: segment.reserve(0, 1)):
        with pytest.raises(AssertionError, match="closed"):
            use()


def test_given_a_segment_that_nobody_holds_then_it_is_gone() -> None:
    path = Segment.create(10).path
    gc.collect()
    assert not path.exists()


def test_given_an_empty_segment_then_it_has_a_name_like_any_other() -> None:
    empty = Segment.create(0)
    empty.reserve(0, 0)
    attached = Segment.attach(empty.name)
    attached.close()
    empty.close()


def test_given_a_segment_then_only_its_user_can_open_it_and_nobody_to_write() -> None:
    segment = Segment.create(10)
    assert segment.path.stat().st_mode & 0o777 == 0o400
    segment.close()


def test_given_a_buffer_then_it_knows_what_kind_of_memory_it_is() -> None:
    segment = Segment.create(10)
    shared, private = Buffer.of(segment), Buffer.private(20)
    assert (shared.kind, shared.nbytes) == (MemoryKind.SHARED, 10)
    assert (private.kind, private.nbytes) == (MemoryKind.PRIVATE, 20)
    segment.close()


# -- what is refused


def test_given_another_file_of_the_same_name_then_it_is_refused() -> None:
    owned = Segment.create(1000)
    name = owned.name
    os.unlink(owned.path)
    owned.path.write_bytes(b"x" * 1000)
    assert not owned.still_named()
    with pytest.raises(SharedMemoryError, match="was replaced or cut short"):
        Segment.attach(name)
    owned.close()
    assert owned.path.read_bytes() == b"x" * 1000, "a file that is not ours is not ours to remove"
    owned.path.unlink()


def test_given_a_file_that_was_cut_then_it_is_refused() -> None:
    owned = Segment.create(1000)
    owned.path.chmod(0o600)
    assert not owned.was_cut()
    os.truncate(owned.path, 500)
    assert owned.was_cut()
    with pytest.raises(SharedMemoryError, match="was replaced or cut short"):
        Segment.attach(owned.name)
    os.truncate(owned.path, 0)
    with pytest.raises(SharedMemoryError, match="was replaced or cut short"):
        Segment.attach(owned.name)
    owned.close()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "no-such-segment", ".", "", "nul\0nul", "x" * 500])
def test_given_a_name_that_is_no_segment_then_it_is_refused(name: str) -> None:
    with pytest.raises(SharedMemoryError):
        Segment.attach(SegmentName(name, 1, 1))


def test_given_a_link_of_a_segments_name_then_it_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    link = SHM / f"{PREFIX}{os.getuid()}-{os.getpid()}-{secrets.token_hex(4)}"
    link.symlink_to(secret)
    try:
        with pytest.raises(SharedMemoryError, match="symbolic links"):
            Segment.attach(SegmentName(link.name, secret.stat().st_ino, 6))
    finally:
        link.unlink()


def test_given_a_pipe_of_a_segments_name_then_it_is_refused_and_not_waited_for() -> None:
    pipe = SHM / f"{PREFIX}{os.getuid()}-{os.getpid()}-{secrets.token_hex(4)}"
    os.mkfifo(pipe)
    try:
        with pytest.raises(SharedMemoryError, match="was replaced or cut short"):
            Segment.attach(SegmentName(pipe.name, pipe.stat().st_ino, 0))
    finally:
        pipe.unlink()


def test_given_a_file_that_somebody_else_keeps_in_shared_memory_then_it_is_not_mapped(place: Path) -> None:
    """Whoever keeps it may make it shorter, which kills those who read it."""
    place.write_bytes(b"theirs")
    with pytest.raises(SharedMemoryError, match="is not called as a segment is"):
        Segment.attach(SegmentName(place.name, place.stat().st_ino, 6))


def test_given_too_little_shared_memory_then_the_error_says_how_much_there_is() -> None:
    wanted = free_shared_memory() + (1 << 40)
    with pytest.raises(SharedMemoryError, match=rf"bytes free and {wanted:,} are needed.*--shm-size"):
        Segment.create(wanted)


def test_given_shared_memory_that_fills_up_later_then_reserving_says_so_instead_of_dying(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status = os.statvfs(SHM)
    beyond = status.f_blocks * status.f_frsize + (1 << 30)
    monkeypatch.setattr("ckpt_transport.memory.segment.free_shared_memory", lambda: beyond)
    segment = Segment.create(beyond)
    try:
        with pytest.raises(SharedMemoryError, match="are needed"):
            segment.reserve(0, beyond)
    finally:
        segment.close()


# -- leftovers

OWNER = """
import sys, time
from ckpt_transport.memory import Segment
segment = Segment.create(4096)
print(segment.path, flush=True)
sys.stdin.read()
"""

FORKED = """
import os, sys
from ckpt_transport.memory import Segment
segment = Segment.create(4096)
ready, done = os.pipe(), os.pipe()
if (child := os.fork()) == 0:
    os.write(ready[1], b"!")
    os.read(done[0], 1)
    sys.exit(0)
os.read(ready[0], 1)
print(segment.path, child, flush=True)
sys.stdin.readline()
os.write(done[1], b"!")
os.wait()
print(segment.path.exists(), flush=True)
sys.stdin.read()
"""


def test_given_a_killed_owner_then_a_sweep_removes_its_segment_and_no_other() -> None:
    mine = Segment.create(4096)
    dying, living = run(OWNER), run(OWNER)
    try:
        left, kept = Path(line(dying)), Path(line(living))
        attached = Segment.attach(SegmentName(left.name, left.stat().st_ino, 4096))
        assert left not in sweep_leftovers()
        os.kill(dying.pid, signal.SIGKILL)
        dying.wait()
        assert swept(lambda: not left.exists())
        assert kept.exists()
        assert mine.path.exists()
        assert attached.tensor().numel() == 4096, "whoever maps it can still read it"
        attached.close()
        living.communicate()
        assert not kept.exists()
    finally:
        for child in (dying, living):
            child.kill()
            child.communicate()
    mine.close()


def test_given_a_forked_child_then_it_neither_removes_nor_frees_its_parents_segment() -> None:
    child = run(FORKED)
    try:
        path = Path(line(child).split()[0])
        assert path not in sweep_leftovers()
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
        assert line(child) == "True"
        assert path not in sweep_leftovers()
        child.communicate()
        assert not path.exists()
    finally:
        child.kill()
        child.communicate()


def test_given_a_killed_parent_then_its_segment_stays_while_a_forked_child_holds_it() -> None:
    """Whoever holds the memory may be reading it; the last of them lets it go."""
    parent = run(FORKED)
    path, child = line(parent).split()
    process = os.pidfd_open(int(child))
    try:
        parent.kill()
        parent.wait()
        assert Path(path) not in sweep_leftovers()
        assert Path(path).exists()
    finally:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        wait_gone(process)
        parent.communicate()
    assert swept(lambda: not Path(path).exists())


def wait_gone(descriptor: int) -> None:
    """Wait until a process that is not our child has ended."""
    assert select.select([descriptor], [], [], 60.0)[0]
    os.close(descriptor)


def test_given_a_file_that_only_looks_like_ours_then_a_sweep_is_not_stopped_by_it() -> None:
    odd = SHM / f"{PREFIX}{os.getuid()}-{os.getpid()}-{secrets.token_hex(4)}"
    odd.mkdir()
    try:
        assert odd not in sweep_leftovers()
        assert odd.is_dir()
    finally:
        odd.rmdir()


def test_given_a_segment_then_its_name_travels() -> None:
    segment = Segment.create(10)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(segment.name), type=SegmentName) == segment.name
    segment.close()
