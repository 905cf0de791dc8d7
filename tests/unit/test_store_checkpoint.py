"""Which files and tensors make up a checkpoint, how ranks share it, and which checkpoints are refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_transport.errors import CheckpointError
from ckpt_transport.planning.manifest import TensorSpec
from ckpt_transport.store.checkpoint import CheckpointFile, FileStamp, from_directory, from_files, share
from ckpt_transport.store.header import TensorEntry
from tests.unit.safetensors_files import entry, write

INDEX = "model.safetensors.index.json"


def write_one(path: Path, *names: str) -> Path:
    """A file with a one-byte tensor of each name."""
    header = {name: entry("U8", [1], at, at + 1) for at, name in enumerate(names)}
    return write(path, header, b"x" * len(names))


def write_index(directory: Path, weight_map: object) -> Path:
    path = directory / INDEX
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


def names(files: tuple[CheckpointFile, ...]) -> list[tuple[str, str]]:
    return [(file.path.name, tensor.spec.name) for file in files for tensor in file.tensors]


def test_given_an_index_then_exactly_what_it_lists_is_taken(tmp_path: Path) -> None:
    write_one(tmp_path / "b.safetensors", "b", "unlisted")
    write_one(tmp_path / "a.safetensors", "a")
    write_one(tmp_path / "model.safetensors", "other checkpoint")
    write_index(tmp_path, {"b": "b.safetensors", "a": "a.safetensors"})
    assert names(from_directory(tmp_path)) == [("a.safetensors", "a"), ("b.safetensors", "b")]


def test_given_no_index_then_model_safetensors_is_the_checkpoint(tmp_path: Path) -> None:
    write_one(tmp_path / "model.safetensors", "a")
    write_one(tmp_path / "adapter.safetensors", "b")
    assert names(from_directory(tmp_path)) == [("model.safetensors", "a")]


def test_given_neither_then_all_files_are(tmp_path: Path) -> None:
    write_one(tmp_path / "2.safetensors", "a")
    write_one(tmp_path / "1.safetensors", "b")
    (tmp_path / "config.json").write_text("{}")
    assert names(from_directory(tmp_path)) == [("1.safetensors", "b"), ("2.safetensors", "a")]


def test_given_links_into_a_cache_then_they_are_followed(tmp_path: Path) -> None:
    write_one(tmp_path / "blob", "a")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to("../blob")
    assert names(from_directory(snapshot)) == [("model.safetensors", "a")]


def two_copies(directory: Path) -> Path:
    write_one(directory / "1.safetensors", "a")
    write_one(directory / "2.safetensors", "a")
    return directory


def not_a_directory(directory: Path) -> Path:
    return write_one(directory / "model.safetensors", "a")


def missing_shard(directory: Path) -> Path:
    write_index(directory, {"a": "gone.safetensors"})
    return directory


def half_a_download(directory: Path) -> Path:
    write_one(directory / "model-00002-of-00003.safetensors", "a")
    write_one(directory / "model-00003-of-00003.safetensors", "b")
    return directory


def wrong_shard(directory: Path) -> Path:
    write_one(directory / "1.safetensors", "a")
    write_index(directory, {"a": "1.safetensors", "b": "1.safetensors"})
    return directory


def broken_index(directory: Path) -> Path:
    (directory / INDEX).write_text('{"weight_map": ')
    return directory


def index_is_a_directory(directory: Path) -> Path:
    (directory / INDEX).mkdir()
    return directory


def index_of(weight_map: object) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        write_index(directory, weight_map)
        return directory

    return make


def file_is_a_pipe(directory: Path) -> Path:
    os.mkfifo(directory / "model.safetensors")
    return directory


def no_tensors(directory: Path) -> Path:
    write(directory / "model.safetensors", {})
    return directory


@pytest.mark.parametrize(
    ("make", "messages"),
    [
        pytest.param(lambda directory: directory, ["holds no *.safetensors"], id="empty directory"),
        pytest.param(lambda directory: directory / "gone", ["gone is not a directory"], id="no such directory"),
        pytest.param(not_a_directory, ["is not a directory"], id="a file"),
        pytest.param(two_copies, ["tensor 'a'", "1.safetensors", "2.safetensors"], id="a tensor in two files"),
        pytest.param(missing_shard, [INDEX, "tensor 'a' to gone.safetensors, which is missing"], id="missing shard"),
        pytest.param(half_a_download, ["model-00001-of-00003", "is missing, of 3 files"], id="shards without an index"),
        pytest.param(wrong_shard, [INDEX, "tensor 'b'", "1.safetensors, which does not hold it"], id="wrong shard"),
        pytest.param(broken_index, [INDEX, "not valid JSON"], id="broken index"),
        pytest.param(index_is_a_directory, [INDEX, "cannot be read"], id="index is a directory"),
        pytest.param(index_of([]), [INDEX, "no 'weight_map'"], id="weight map is a list"),
        pytest.param(index_of({}), [INDEX, "no 'weight_map'"], id="weight map is empty"),
        pytest.param(index_of({"a": 3}), [INDEX, "tensor 'a'", "no file name"], id="file name is a number"),
        pytest.param(index_of({"a": "../x"}), ["tensor 'a'", "outside its own directory"], id="index reaches out"),
        pytest.param(index_of({"a": "/x"}), ["tensor 'a'", "outside its own directory"], id="absolute file name"),
        pytest.param(file_is_a_pipe, ["model.safetensors is not a plain file"], id="a pipe"),
        pytest.param(no_tensors, ["model.safetensors", "no tensor at all"], id="no tensors"),
    ],
)
def test_given_a_bad_directory_then_the_error_says_what_is_wrong(
    tmp_path: Path, make: Callable[[Path], Path], messages: list[str]
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(messages[0])) as caught:
        from_directory(make(tmp_path))
    for message in messages:
        assert message in str(caught.value)


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
def test_ranks_share_a_checkpoint_in_order_and_evenly(sizes: list[list[int]], world_size: int) -> None:
    files = [file_of(index, of_file) for index, of_file in enumerate(sizes)]
    every = [entry for file in files for entry in file.tensors]
    parts = [[entry for file in share(files, rank, world_size) for entry in file.tensors] for rank in range(world_size)]
    assert [entry for part in parts for entry in part] == every
    fair = sum(entry.nbytes for entry in every) / world_size
    largest = max((entry.nbytes for entry in every), default=0)
    assert all(abs(sum(entry.nbytes for entry in part) - fair) <= largest for part in parts)


def test_given_only_empty_tensors_then_ranks_share_their_number() -> None:
    assert [len(share([file_of(0, [0] * 6)], rank, 3)[0].tensors) for rank in range(3)] == [2, 2, 2]
