"""Where versions lie: in pools that are reused, out of reach of who keeps the files, and nothing is left behind."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ckpt_transport.checkpoint import Store
from ckpt_transport.checkpoint.reader import CHUNK_NBYTES
from ckpt_transport.errors import CheckpointError, SharedMemoryError, StoreError
from ckpt_transport.memory import MemoryKind, Segment
from ckpt_transport.memory.segment import SHM
from tests.unit.safetensors_files import entry, every_dtype, held, oracle, segments, write, write_sparse


@pytest.fixture
def shm_path() -> Iterator[Path]:
    """A directory in shared memory, for files that somebody else keeps there."""
    path = SHM / f"test-store-{os.getpid()}-{secrets.token_hex(4)}"
    path.mkdir()
    yield path
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def segment_path(store: Store, version: str) -> Path:
    segment = store.get(version).buffers[-1].segment
    assert segment is not None
    return segment.path


def test_given_the_next_version_has_the_same_size_then_it_reuses_the_pool() -> None:
    with Store() as store:
        store.register("step-1", tensors={"a": torch.ones(1000)})
        first = segment_path(store, "step-1")
        store.unregister("step-1")
        assert segments() == {first}
        stored = store.register("step-2", tensors={"a": torch.full((1000,), 2.0)})
        assert segment_path(store, "step-2") == first
        assert stored.buffers[0].tensor[:4000].view(torch.float32).eq(2.0).all()


def test_given_another_size_then_the_free_pool_is_released_first() -> None:
    with Store() as store:
        store.register("step-1", tensors={"a": torch.ones(1000)})
        first = segment_path(store, "step-1")
        store.unregister("step-1")
        store.register("step-2", tensors={"a": torch.ones(2000)})
        assert not first.exists()
        assert segments() == {segment_path(store, "step-2")}


def test_given_two_versions_unregistered_then_one_pool_is_kept() -> None:
    with Store() as store:
        for version in ("step-1", "step-2"):
            store.register(version, tensors={"a": torch.ones(1000)})
        kept = segment_path(store, "step-2")
        store.unregister("step-1")
        store.unregister("step-2")
        assert segments() == {kept}


def test_given_a_private_pool_then_it_is_reused_as_well() -> None:
    with Store(pool=MemoryKind.PRIVATE) as store:
        first = store.register("step-1", tensors={"a": torch.ones(1000)}).buffers[0].tensor.data_ptr()
        store.unregister("step-1")
        assert store.register("step-2", tensors={"a": torch.ones(1000)}).buffers[0].tensor.data_ptr() == first


def test_given_a_failed_registration_then_a_reused_pool_is_free_again(tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "a.safetensors", {"a": 4 * CHUNK_NBYTES})

    def give_up(done: int, total: int) -> None:
        raise InterruptedError

    with Store() as store:
        store.register("step-1", files=[path])
        kept = segment_path(store, "step-1")
        store.unregister("step-1")
        with pytest.raises(InterruptedError):
            store.register("step-2", files=[path], progress=give_up)
        assert segments() == {kept}
        store.register("step-2", files=[path])
        assert segment_path(store, "step-2") == kept


def test_given_a_closed_store_then_nothing_is_left_and_nothing_can_be_registered() -> None:
    store = Store()
    store.register("step-1", tensors={"a": torch.ones(5)})
    store.register("step-2", tensors={"a": torch.ones(5)})
    store.unregister("step-1")
    assert len(segments()) == 2
    store.close()
    store.close()
    assert not segments()
    with pytest.raises(StoreError, match="closed"):
        store.register("step-3", tensors={"a": torch.ones(5)})
    with pytest.raises(StoreError, match="no version 'step-2'"):
        store.get("step-2")


def test_given_a_store_that_was_only_forgotten_then_its_segments_go_too() -> None:
    store = Store()
    store.register("step-1", tensors={"a": torch.ones(5)})
    del store
    assert not segments()


def test_given_a_checkpoint_larger_than_shared_memory_then_it_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "huge.safetensors", {"huge": shutil.disk_usage(SHM).total + (1 << 30)})
    with Store() as store:
        with pytest.raises(SharedMemoryError, match=r"bytes free and .* are needed"):
            store.register("step-1", files=[path])
        assert not segments()
        with pytest.raises(StoreError, match="registered: none"):
            store.get("step-1")


def test_given_a_damaged_file_among_good_ones_then_nothing_is_left(tmp_path: Path, shm_path: Path) -> None:
    write_sparse(shm_path / "1.safetensors", {"a": 10})
    write_sparse(tmp_path / "2.safetensors", {"b": 10})
    bad = write(tmp_path / "3.safetensors", {"c": entry("U8", [3], 0, 3)}, b"a")
    with Store() as store:
        with pytest.raises(CheckpointError, match="cut short by 2 bytes"):
            store.register("step-1", files=[shm_path / "1.safetensors", tmp_path / "2.safetensors", bad])
        assert not segments()


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"x" * path.stat().st_size)


def cut(path: Path) -> None:
    os.truncate(path, 0)


def replaced(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"y")


@pytest.mark.parametrize("kind", [MemoryKind.SHARED, MemoryKind.PRIVATE])
@pytest.mark.parametrize("change", [overwritten, cut, replaced, Path.unlink])
def test_given_a_file_in_shared_memory_then_what_is_done_to_it_later_changes_no_version(
    tmp_path: Path, shm_path: Path, change: Callable[[Path], None], kind: MemoryKind
) -> None:
    header, data = every_dtype()
    path = write(shm_path / "m.safetensors", header, data)
    (tmp_path / "model.safetensors").symlink_to(path)
    with Store(pool=kind) as store:
        versions = [store.register("file", files=[path]), store.register("link", directory=tmp_path)]
        expected = oracle(path)
        change(path)
        for stored in versions:
            assert held(stored) == expected
            assert [buffer.kind for buffer in stored.buffers] == [kind]


@pytest.mark.parametrize("change", [overwritten, cut])
def test_given_a_file_in_shared_memory_that_is_changed_while_it_is_registered_then_it_is_refused(
    shm_path: Path, change: Callable[[Path], None]
) -> None:
    path = write_sparse(shm_path / "m.safetensors", {"a": 3 * CHUNK_NBYTES})
    os.utime(path, (0, 0))
    with Store() as store:
        with pytest.raises(CheckpointError, match=r"m\.safetensors.* (changed while|was cut short while)"):
            store.register("step-1", files=[path], progress=lambda done, total: change(path))
        assert not segments()


def test_given_a_killed_process_then_the_next_store_removes_its_segment() -> None:
    script = "from ckpt_transport.memory import Segment; s = Segment.create(4096); print(s.path, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        with Store():
            assert left.exists(), "its owner is alive"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert left.exists()
    own = Segment.create(10)
    with Store():
        assert not left.exists()
        assert own.still_named(), "what a living process holds stays"
    own.close()
