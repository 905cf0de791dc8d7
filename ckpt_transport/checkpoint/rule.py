"""What all rules of a mapping have in common: a tensor on its way through them, and patterns of names."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

import msgspec
import torch

from ckpt_transport import dtypes
from ckpt_transport.checkpoint.boxes import BoxedTensor
from ckpt_transport.checkpoint.dtensors import is_dtensor
from ckpt_transport.checkpoint.given import given_tensors
from ckpt_transport.checkpoint.shards import TensorShard
from ckpt_transport.decoding import prepared
from ckpt_transport.errors import CheckpointError, ConfigError
from ckpt_transport.planning.values.manifest import TensorSpec


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """A tensor on its way through the rules.

    Attributes:
        origin: its name at the trainer.
        value: as the trainer gives it; None where it is made of several.
        replicated: a plain tensor is the same at every source that gives it.
        boxed: what has become of it; None as long as only its name has changed.
        how: the rules that have made more of it than another name.
    """

    origin: str
    value: Any
    replicated: bool
    boxed: BoxedTensor | None = None
    how: tuple[str, ...] = field(default=())

    def boxes(self) -> BoxedTensor:
        """
        Raises:
            CheckpointError: it is no tensor that can be cut; names it.
        """
        if self.boxed is not None:
            return self.boxed
        value = self.value
        parts = isinstance(value, Sequence) and bool(value) and all(isinstance(each, TensorShard) for each in value)
        if not (parts or isinstance(value, TensorShard) or is_dtensor(value)):
            value = given_tensors({self.origin: value}).get(self.origin)
        if value is None:
            raise CheckpointError(f"'{self.origin}' is no tensor; drop it")
        return BoxedTensor.of(self.origin, value, replicated=self.replicated)

    def made(self, boxed: BoxedTensor, rule: object) -> MappedTensor:
        return replace(self, boxed=boxed, how=(*self.how, str(rule)))


Tensors = dict[str, MappedTensor]


class Rule(msgspec.Struct, frozen=True, kw_only=True, tag_field="rule", tag=str.lower, forbid_unknown_fields=True):
    """What becomes of some tensors. Rules of a mapping are applied one after the other.

    Attributes:
        optional: it may match nothing. Without this, a rule that matches no tensor is an error.
    """

    needs_all: ClassVar[bool] = False
    """Whether it looks at several tensors at once, and so cannot be applied while they come one by one."""
    reads_bytes: ClassVar[bool] = False
    """Whether what it makes of tensors depends on their elements, and not on names, types and shapes alone."""

    optional: bool = False

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: a field has a value of another kind.
        """
        for each in msgspec.structs.fields(type(self)):
            value = getattr(self, each.name)
            try:
                checked = msgspec.convert(value, prepared(each.type))
            except msgspec.ValidationError as error:
                kind = self.__struct_config__.tag
                raise ConfigError(f"{kind} has {each.name}={value!r} and cannot have that: {error}") from error
            msgspec.structs.force_setattr(self, each.name, checked)

    @abstractmethod
    def apply(self, tensors: Tensors) -> tuple[Tensors, int]:
        """
        Args:
            tensors: by name.

        Returns: what has become of all of them, by name, and how many matched.

        Raises:
            CheckpointError: it cannot be applied to a tensor, or two get one name; names them.
        """

    def __str__(self) -> str:
        """The rule in short, as an error and a manifest say it."""
        kind = self.__struct_config__.tag
        values = [getattr(self, name) for name in self.__struct_fields__ if name != "optional"]
        return " ".join([str(kind), *(_shown(value) for value in values if value not in ((), 0))])


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@lru_cache(maxsize=256)
def check_pattern(pattern: str) -> re.Pattern[str]:
    """
    Raises:
        ConfigError: it is no regular expression.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"'{pattern}' is no regular expression: {error}") from error


def matches(pattern: str, names: Mapping[str, object]) -> Iterator[tuple[str, re.Match[str]]]:
    compiled = check_pattern(pattern)
    for name in names:
        if (match := compiled.fullmatch(name)) is not None:
            yield name, match


def expanded(match: re.Match[str], template: str) -> str:
    """
    Raises:
        ConfigError: the template refers to a group that the pattern does not have.
    """
    try:
        return match.expand(template)
    except (re.error, IndexError) as error:
        raise ConfigError(f"'{template}' does not fit the pattern '{match.re.pattern}': {error}") from error


def dtype_of(tensor: MappedTensor) -> torch.dtype | None:
    """None of what is no tensor."""
    return tensor.boxed.dtype if tensor.boxed is not None else described(tensor.value)[0]


def described(value: Any) -> tuple[torch.dtype | None, tuple[int, ...]]:
    """Type and shape of a tensor as a source gives it, whole or in parts; no type for what is no tensor."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape)
    shard = value[0] if isinstance(value, Sequence) and value else value
    if isinstance(shard, TensorShard) and isinstance(shard.tensor, torch.Tensor):
        return shard.tensor.dtype, tuple(shard.shape)
    return None, ()


def describe_given(name: str, value: Any) -> TensorSpec | None:
    """What is given under a name, as a checkpoint would declare it; None for what is no tensor of a known type."""
    dtype, shape = described(value)
    known = dtype is not None and dtype in dtypes.TORCH.values()
    return TensorSpec(name, dtypes.name_of(dtype), shape) if known and dtype is not None else None


def renamed(tensors: Tensors, names: Mapping[str, str]) -> tuple[Tensors, int]:
    return replaced(tensors, {old: [(new, tensors[old])] for old, new in names.items()}), len(names)


def replaced(tensors: Tensors, pieces: Mapping[str, Sequence[tuple[str, MappedTensor]]]) -> Tensors:
    """Put tensors in the place of others, by their names.

    Raises:
        CheckpointError: two get one name; names both.
    """
    found: Tensors = {}
    for name, tensor in tensors.items():
        for new, made in pieces.get(name, [(name, tensor)]):
            if new in found:
                raise CheckpointError(
                    f"'{found[new].origin}' and '{made.origin}' both become '{new}'; drop one of them, or correct the "
                    "rule"
                )
            if not new:
                raise CheckpointError(f"'{made.origin}' gets an empty name; correct the rule")
            found[new] = made
    return found
