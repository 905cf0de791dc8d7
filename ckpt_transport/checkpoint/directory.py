"""A directory may hold more than a checkpoint: this module finds the files that belong to it by Hugging Face's layout.

Transformers reads ``model.safetensors`` if it is there, else what the index lists. vLLM reads the files that the index
lists, else all there are, and of ``consolidated*.safetensors`` nothing else. Both read every tensor of a file that they
read. A directory in which that is not the same model is refused, and the error says which files do not go together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckpt_transport.checkpoint.checkpoint import CheckpointFile, from_files, read_file
from ckpt_transport.checkpoint.strict_json import parse_object
from ckpt_transport.errors import CheckpointError
from ckpt_transport.paths import without_nul
from ckpt_transport.planning import TensorSpec

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_model"
CONSOLIDATED = "consolidated"
SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{1,9})-of-(?P<count>\d{1,6})\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth")


def from_path(path: Path) -> tuple[CheckpointFile, ...]:
    """Find the checkpoint at ``path``: a directory, or one file.

    Raises:
        CheckpointError: as :func:`from_directory` and :func:`~ckpt_transport.checkpoint.checkpoint.from_files`.
    """
    return from_directory(path) if path.is_dir() else from_files([path])


def from_directory(directory: Path) -> tuple[CheckpointFile, ...]:
    """Find the checkpoint in a directory as Hugging Face lays it out.

    With ``model.safetensors.index.json`` it is the files that the index lists; else it is all ``*.safetensors`` files.
    ``adapter_model*.safetensors``, hidden files and subdirectories are no part of it.

    Raises:
        CheckpointError: it is no directory or holds no checkpoint, the index is malformed, a file is damaged, or the
            index and the files, or two files, do not go together; names both.
    """
    without_nul(directory, CheckpointError)
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory; give the directory of the checkpoint, or its files")
    paths = [path for path in directory.glob("*.safetensors") if not path.name.startswith(".")]
    weights = sorted(path for path in paths if not path.name.startswith(ADAPTER))
    if (directory / INDEX).exists():
        return _from_index(directory / INDEX, weights)
    if not weights:
        raise CheckpointError(_what_it_is(directory, adapters=paths))
    _check_alike(weights)
    _check_complete(weights)
    return from_files(weights)


def specs_of(directory: Path) -> tuple[TensorSpec, ...]:
    """What tensors the checkpoint in a directory has. Their bytes are not read.

    Raises:
        CheckpointError: as :func:`from_directory`.
    """
    return tuple(entry.spec for file in from_directory(directory) for entry in file.tensors)


def _what_it_is(directory: Path, adapters: Sequence[Path]) -> str:
    """Says what a directory without weights holds instead, and what to do."""
    if adapters:
        return (
            f"{directory} holds an adapter, {min(adapters).name}, and no model; merge it into its base model "
            "(merge_and_unload and save_pretrained of PEFT) and register what that writes"
        )
    pickles = sorted(path for pattern in _PICKLES for path in directory.glob(pattern))
    if pickles:
        return (
            f"{directory} holds {pickles[0].name} and no *.safetensors file; load it with torch.load(..., "
            "weights_only=True) and register the tensors, or save them with safetensors.torch.save_file"
        )
    if below := sorted(path.parent for path in directory.glob("*/*.safetensors")):
        return f"{directory} holds no *.safetensors file, and its subdirectory {below[0].name} does; give {below[0]}"
    return f"{directory} holds no *.safetensors file; download the checkpoint in that format"


def _check_alike(paths: Sequence[Path]) -> None:
    """Without an index nothing says that other files belong to those which some programs read alone."""
    for path in paths:
        others = [other for other in paths if other != path and not other.name.startswith(CONSOLIDATED)]
        if others and (path.name == SINGLE or path.name.startswith(CONSOLIDATED)):
            raise CheckpointError(
                f"{path} and {others[0]} lie together, and no {INDEX} says whether both are the model: some programs "
                f"read only {path.name}; delete what does not belong to it, or give the right files with files="
            )


def _check_complete(paths: Sequence[Path]) -> None:
    """Shards say in their names how many there are."""
    for path in paths:
        if found := SHARD.fullmatch(path.name):
            name, digits, count = found["name"], len(found["number"]), int(found["count"])
            shards = [path.with_name(f"{name}-{n + 1:0{digits}}-of-{found['count']}.safetensors") for n in range(count)]
            if missing := [shard for shard in shards if shard not in paths]:
                raise CheckpointError(
                    f"{missing[0]} is missing, of {count} files that {path.name} is one of; download all of them"
                )


def _from_index(index: Path, present: Sequence[Path]) -> tuple[CheckpointFile, ...]:
    weight_map = _weight_map(index)
    listed: dict[Path, set[str]] = {}
    for name, file_name in weight_map.items():
        listed.setdefault(index.parent / file_name, set()).add(name)
    _check_listed(index, weight_map, listed)
    files = from_files(list(listed))
    for file in files:
        _check_names(file, listed[file.path], index)
    _check_unlisted([path for path in present if path not in listed], weight_map, index)
    return files


def _check_listed(index: Path, weight_map: Mapping[str, str], listed: Mapping[Path, object]) -> None:
    """The index lists files that are there, and ``model.safetensors`` among them if it is."""
    single = index.with_name(SINGLE)
    unlisted = single.exists() and single not in listed
    for name, file in weight_map.items():
        if os.path.exists(index.parent / file):  # which is false for what cannot be a file's name
            continue
        if unlisted:
            raise CheckpointError(
                f"{index} maps tensor {name!r} to {file}, which is missing, and does not list {single}, which is "
                f"there; delete {INDEX} if {SINGLE} is the model, or give files=[{str(single)!r}]; else download {file}"
            )
        raise CheckpointError(f"{index} maps tensor {name!r} to {file}, which is missing; download that file")
    if unlisted:
        raise CheckpointError(
            f"{index} does not list {single}, which lies beside it: Transformers reads {SINGLE}, and vLLM what the "
            f"index lists; delete the one that is old ({INDEX} with its files, or {SINGLE}), or give the right files "
            "with files="
        )


def _check_names(file: CheckpointFile, names: set[str], index: Path) -> None:
    """A listed file holds exactly the tensors that the index maps to it."""
    held = {entry.spec.name for entry in file.tensors}
    if missing := names - held:
        raise CheckpointError(
            f"{index} maps tensor {min(missing)!r} to {file.path}, which does not hold it; index and files are of "
            "different downloads: download both again"
        )
    if more := held - names:
        raise CheckpointError(
            f"{file.path} holds tensor {min(more)!r}, which {index} does not list; index and files were saved at "
            f"different times: save both again, or give the right files with files="
        )


def _check_unlisted(paths: Sequence[Path], weight_map: Mapping[str, str], index: Path) -> None:
    """What the index leaves out holds no other value of a tensor that it lists. What cannot be read holds none."""
    for path in paths:
        try:
            held = read_file(path).tensors
        except CheckpointError:
            continue
        if twice := [entry.spec.name for entry in held if entry.spec.name in weight_map]:
            raise CheckpointError(
                f"tensor {twice[0]!r} is in {path} and in {index.with_name(weight_map[twice[0]])}, and {index} lists "
                "only the second; delete what is old, or give the right files with files="
            )


def _weight_map(index: Path) -> dict[str, str]:
    if index.is_fifo():  # reading it would wait for a writer
        raise CheckpointError(f"{index} is not a plain file; download it again")
    try:
        text = index.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read: {error.strerror}") from error
    weight_map = parse_object(text, str(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no 'weight_map' of tensors to files; download it again")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file or "\0" in file:
            raise CheckpointError(f"{index} maps tensor {name!r} to {file!r}, which is no file name; download it again")
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise CheckpointError(
                f"{index} maps tensor {name!r} to {file!r}, outside its own directory; put the file next to the index"
            )
    return weight_map
