"""Which files and tensors make up a checkpoint, and how ranks share it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.checkpoint.checkpoint import CheckpointFile, FileStamp, from_files, share
from ckpt_transport.checkpoint.header import TensorEntry
from ckpt_transport.errors import CheckpointError
from ckpt_transport.planning.values.manifest import TensorSpec
from tests.unit.safetensors_files import entry, write


def write_one(path: Path, *names: str) -> Path:
    """A file with a one-byte tensor of each name."""
    header = {name: entry("U8", [1], at, at + 1) for at, name in enumerate(names)}
    return write(path, header, b"x" * len(names))


def test_given_no_files_then_they_are_refused() -> None:
    with pytest.raises(CheckpointError, match="list of files is empty"):
        from_files([])


def test_given_a_missing_file_then_the_error_names_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors cannot be opened: No such file"):
        from_files([tmp_path / "gone.safetensors"])


def test_given_one_file_twice_then_it_is_refused(tmp_path: Path) -> None:
    path = write_one(tmp_path / "1.safetensors", "a")
    with pytest.raises(CheckpointError, match="tensor 'a' is in"):
        from_files([path, path])


def test_given_a_file_written_again_after_its_header_was_read_then_opening_it_fails(tmp_path: Path) -> None:
    path = write_one(tmp_path / "1.safetensors", "a")
    (file,) = from_files([path])
    write_one(path, "a", "b")
    with pytest.raises(CheckpointError, match=r"1\.safetensors changed"), file.opened():
        pass


def file_of(index: int, sizes: list[int]) -> CheckpointFile:
    entries: list[TensorEntry] = []
    start = 100
    for number, size in enumerate(sizes):
        entries.append(TensorEntry(TensorSpec(f"{index}.{number}", "U8", (size,)), start, size))
        start += size
    return CheckpointFile(Path(str(index)), FileStamp(0, index, start, 0), tuple(entries))


@given(st.lists(st.lists(st.integers(0, 1000), max_size=8), max_size=4), st.integers(1, 9))
def test_given_a_checkpoint_then_ranks_share_it_in_order_and_evenly(sizes: list[list[int]], world_size: int) -> None:
    files = [file_of(index, of_file) for index, of_file in enumerate(sizes)]
    every = [entry for file in files for entry in file.tensors]
    parts = [[entry for file in share(files, rank, world_size) for entry in file.tensors] for rank in range(world_size)]
    assert [entry for part in parts for entry in part] == every
    fair = sum(entry.nbytes for entry in every) / world_size
    largest = max((entry.nbytes for entry in every), default=0)
    assert all(abs(sum(entry.nbytes for entry in part) - fair) <= largest for part in parts)


def test_given_only_empty_tensors_then_ranks_share_their_number() -> None:
    assert [len(share([file_of(0, [0] * 6)], rank, 3)[0].tensors) for rank in range(3)] == [2, 2, 2]
