"""Which files of a directory are its checkpoint, and which directories are refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_transport.checkpoint.checkpoint import CheckpointFile
from ckpt_transport.checkpoint.directory import from_directory
from ckpt_transport.errors import CheckpointError
from tests.unit.safetensors_files import entry, write

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"


def write_one(path: Path, *names: str) -> Path:
    """A file with a one-byte tensor of each name."""
    path.parent.mkdir(exist_ok=True)
    header = {name: entry("U8", [1], at, at + 1) for at, name in enumerate(names)}
    return write(path, header, b"x" * len(names))


def write_index(directory: Path, weight_map: object) -> Path:
    path = directory / INDEX
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


def write_shards(directory: Path, *, index: bool = True) -> None:
    """Two shards, of tensors ``a`` and ``b``."""
    files = {name: f"model-{number}-of-00002.safetensors" for name, number in (("a", "00001"), ("b", "00002"))}
    for name, file in files.items():
        write_one(directory / file, name)
    if index:
        write_index(directory, files)


def names(files: tuple[CheckpointFile, ...]) -> list[tuple[str, str]]:
    return [(file.path.name, tensor.spec.name) for file in files for tensor in file.tensors]


SHARDS = [("model-00001-of-00002.safetensors", "a"), ("model-00002-of-00002.safetensors", "b")]


def test_given_an_index_then_the_files_it_lists_are_taken(tmp_path: Path) -> None:
    write_one(tmp_path / "b.safetensors", "b")
    write_one(tmp_path / "a.safetensors", "a")
    write_index(tmp_path, {"b": "b.safetensors", "a": "a.safetensors"})
    assert names(from_directory(tmp_path)) == [("a.safetensors", "a"), ("b.safetensors", "b")]


def test_given_an_index_that_lists_model_safetensors_and_another_file_then_both_are_taken(tmp_path: Path) -> None:
    write_one(tmp_path / "model.safetensors", "a")
    write_one(tmp_path / "mtp.safetensors", "b")
    write_index(tmp_path, {"a": "model.safetensors", "b": "mtp.safetensors"})
    assert names(from_directory(tmp_path)) == [("model.safetensors", "a"), ("mtp.safetensors", "b")]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("beside", [ADAPTER, "sub/model.safetensors", "._model.safetensors", "notes.txt"])
def test_given_what_is_no_part_of_a_model_beside_shards_then_it_is_left_out(
    tmp_path: Path, beside: str, index: bool
) -> None:
    write_shards(tmp_path, index=index)
    write_one(tmp_path / beside, "a" if "/" in beside else "base.lora_A")
    assert names(from_directory(tmp_path)) == SHARDS


def test_given_another_layout_of_the_model_under_other_names_beside_an_index_then_it_is_left_out(
    tmp_path: Path,
) -> None:
    """As Mistral publishes its models."""
    write_shards(tmp_path)
    write_one(tmp_path / "consolidated.safetensors", "layers.0.a", "layers.0.b")
    assert names(from_directory(tmp_path)) == SHARDS


def test_given_a_pointer_in_place_of_an_unlisted_file_then_it_is_left_out(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "consolidated.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert names(from_directory(tmp_path)) == SHARDS


def test_given_an_adapter_beside_model_safetensors_then_only_the_model_is_taken(tmp_path: Path) -> None:
    write_one(tmp_path / "model.safetensors", "a")
    write_one(tmp_path / ADAPTER, "base.lora_A")
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


def saved_over_shards(directory: Path) -> Path:
    write_shards(directory)
    write_one(directory / "model.safetensors", "a", "b")
    return directory


def index_of_shards_that_are_gone(directory: Path) -> Path:
    write_one(directory / "model.safetensors", "a", "b")
    write_index(directory, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    return directory


def consolidated_beside(index: bool) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        write_shards(directory, index=index)
        write_one(directory / "consolidated.safetensors", "a", "b")
        return directory

    return make


def consolidated_under_other_names(directory: Path) -> Path:
    write_shards(directory, index=False)
    write_one(directory / "consolidated.safetensors", "layers.0.a", "layers.0.b")
    return directory


def shards_of_two_saves(directory: Path) -> Path:
    write_shards(directory)
    write_one(directory / "model-00003-of-00003.safetensors", "b")
    return directory


def single_and_more(directory: Path) -> Path:
    write_one(directory / "model.safetensors", "a")
    write_one(directory / "mtp.safetensors", "b")
    return directory


def more_than_is_listed(directory: Path) -> Path:
    write_one(directory / "1.safetensors", "a", "unlisted")
    write_index(directory, {"a": "1.safetensors"})
    return directory


def variants(directory: Path) -> Path:
    write_one(directory / "model.fp16.safetensors", "a")
    write_one(directory / "other.safetensors", "a")
    return directory


def adapter_only(directory: Path) -> Path:
    write_one(directory / ADAPTER, "base.lora_A")
    return directory


def pickles_only(directory: Path) -> Path:
    (directory / "pytorch_model.bin").write_bytes(b"PK")
    return directory


def subdirectory_only(directory: Path) -> Path:
    write_one(directory / "text_encoder" / "model.safetensors", "a")
    return directory


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


def index_is_a_pipe(directory: Path) -> Path:
    os.mkfifo(directory / "model.safetensors.index.json")
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
        pytest.param(saved_over_shards, [INDEX, "does not list", "model.safetensors, which"], id="saved over"),
        pytest.param(
            index_of_shards_that_are_gone,
            [INDEX, "model-00001-of-00002.safetensors, which is missing", "delete", "files=['"],
            id="index of shards that are gone",
        ),
        pytest.param(
            consolidated_beside(index=True),
            ["tensor 'a' is in", "consolidated.safetensors", "model-00001-of-00002.safetensors", INDEX, "files="],
            id="consolidated beside an index",
        ),
        pytest.param(
            consolidated_beside(index=False),
            ["consolidated.safetensors and", "model-00001-of-00002.safetensors lie together", "files="],
            id="consolidated beside shards",
        ),
        pytest.param(
            consolidated_under_other_names,
            ["consolidated.safetensors and", "model-00001-of-00002.safetensors lie together", "files="],
            id="consolidated under other names",
        ),
        pytest.param(
            shards_of_two_saves,
            ["tensor 'b' is in", "model-00003-of-00003", "model-00002-of-00002", "files="],
            id="shards of two saves",
        ),
        pytest.param(
            single_and_more, ["model.safetensors and", "mtp.safetensors lie together", "files="], id="single and more"
        ),
        pytest.param(
            more_than_is_listed, ["1.safetensors holds tensor 'unlisted'", INDEX, "files="], id="more than is listed"
        ),
        pytest.param(variants, ["tensor 'a' is in", "model.fp16", "other", "files="], id="variants"),
        pytest.param(adapter_only, [f"an adapter, {ADAPTER}", "merge"], id="adapter only"),
        pytest.param(pickles_only, ["pytorch_model.bin", "torch.load"], id="pickles only"),
        pytest.param(subdirectory_only, ["subdirectory text_encoder", "give"], id="subdirectory only"),
        pytest.param(lambda directory: directory / "a\0b", ["NUL character"], id="NUL"),
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
        pytest.param(index_is_a_pipe, [INDEX, "is not a plain file"], id="index is a pipe"),
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
