"""Where a mapping is to be found out, the sinks are asked what they expect."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from collections.abc import Mapping as MappingOf
from pathlib import Path
from typing import Final, Literal

from ckpt_transport.checkpoint import Mapping, describe_given
from ckpt_transport.checkpoint.auto_mapping import find_mapping
from ckpt_transport.checkpoint.checkpoint import from_files
from ckpt_transport.checkpoint.directory import from_directory
from ckpt_transport.config import Config
from ckpt_transport.errors import CheckpointError, ConfigError, PlanMismatchError
from ckpt_transport.paths import path_of, paths_of
from ckpt_transport.planning import TensorSpec
from ckpt_transport.service.query import ask_expected

AUTO: Final = "auto"
AnyMapping = Mapping | Literal["auto"] | None
"""Rules, or that they are to be found out, or that there are none."""
logger = logging.getLogger(__name__)


def resolved(mapping: AnyMapping, find: Callable[[], Mapping]) -> Mapping | None:
    """The rules that are given; where they are to be found out, those that ``find`` finds.

    Raises:
        ConfigError: what is given is no mapping.
    """
    if mapping is None or isinstance(mapping, Mapping):
        return mapping
    if mapping != AUTO:
        raise ConfigError(f"{mapping!r} is no mapping: give Mapping.of(...) of rules, Mapping.load(PATH), or 'auto'")
    return find()


def in_words(mapping: AnyMapping) -> str:
    """What the caller has said. Rules that are found out are not: they go with the tensors that a rank holds."""
    return "" if mapping is None else str(mapping)


def find_for(given: MappingOf[str, TensorSpec | None], sinks: Sequence[str], config: Config) -> Mapping:
    """Find the rules that make of what is given what all sinks expect, and say which.

    Raises:
        JoinError: a sink does not answer.
        PlanMismatchError: two sinks expect different tensors; names both.
    """
    expected: tuple[TensorSpec, ...] | None = None
    who = ""
    for address in sinks:
        answer = ask_expected(address, config)
        if answer.tensors is None:
            continue
        if expected is not None and set(expected) != set(answer.tensors):
            raise PlanMismatchError(
                f"{who} and {answer.label} expect different tensors, so that no mapping fits both; update them one "
                "after the other"
            )
        expected, who = answer.tensors, answer.label
    mapping = find_mapping(given, expected)
    by = f"comparing with {who}" if who else "well-known prefixes, because no sink says what it expects"
    logger.info("mapping, by %s: %s", by, mapping)
    return mapping


def what_is_given(
    files: Sequence[Path] | None = None, directory: Path | None = None, tensors: object = None
) -> MappingOf[str, TensorSpec | None]:
    """Describe a version before it is taken in.

    Raises:
        CheckpointError: the files are damaged, or tensors come one by one.
    """
    if tensors is None:
        if directory is not None:
            found = from_directory(path_of(directory, CheckpointError))
        else:
            found = from_files(paths_of(files, CheckpointError))
        return {entry.spec.name: entry.spec for file in found for entry in file.tensors}
    if not isinstance(tensors, MappingOf):
        raise CheckpointError(
            "a mapping is found out by looking at all tensors, and these come one by one; give the mapping itself"
        )
    return {name: describe_given(name, value) for name, value in tensors.items()}
