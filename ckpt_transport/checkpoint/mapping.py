"""A mapping is the rules by which the trainer's tensors become the engine's."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Mapping as MappingOf
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ckpt_transport.checkpoint.dtensors import is_dtensor
from ckpt_transport.checkpoint.given import check_name
from ckpt_transport.checkpoint.given_tensor import GivenTensor
from ckpt_transport.checkpoint.parts import given
from ckpt_transport.checkpoint.rule import MappedTensor, Rule, Tensors
from ckpt_transport.checkpoint.rules import RULE_NAMES, AnyRule, Split
from ckpt_transport.decoding import prepared
from ckpt_transport.errors import CheckpointError, ConfigError
from ckpt_transport.paths import path_of
from ckpt_transport.planning.values.manifest import Conversion


class Mapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mapping is rules, applied one after the other to all tensors of a version.

    Attributes:
        rules: see :mod:`ckpt_transport.rules`.
    """

    rules: tuple[AnyRule, ...]

    @classmethod
    def of(cls, *rules: Rule) -> Mapping:
        """A mapping of these rules, in this order.

        Raises:
            ConfigError: something is no rule.
        """
        for each in rules:
            if not isinstance(each, Rule):
                raise ConfigError(f"{each!r} is no rule: give rules.Strip(...), or another of ckpt_transport.rules")
        return cls(rules)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Mapping:
        """Read a mapping from TOML: tables ``[[rules]]``, each with ``rule``, the name of its kind, and its fields.

        Raises:
            ConfigError: the file cannot be read, or says something that is no rule.
        """
        try:
            return msgspec.toml.decode(path_of(path, ConfigError).read_bytes(), type=prepared(cls))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path} is no mapping: {error}; a mapping is tables [[rules]], each with 'rule' and its fields, "
                f"and rules are {', '.join(sorted(RULE_NAMES))}"
            ) from error
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @property
    def cuts_columns(self) -> bool:
        """Whether it makes tensors that are no runs of memory of contiguous ones, so that they cannot be lent."""
        return any(isinstance(rule, Split) and rule.dim > 0 for rule in self.rules)

    @property
    def reads_bytes(self) -> bool:
        """Whether what it makes of tensors depends on their elements, so that each step has to look at them."""
        return any(rule.reads_bytes for rule in self.rules)

    def __str__(self) -> str:
        return "; ".join(map(str, self.rules)) or "no rules"


class MappedTensors(NamedTuple):
    """What a mapping has made of tensors.

    Attributes:
        parts: what this source gives.
        conversions: which of them are made of others, and how.
    """

    parts: list[GivenTensor]
    conversions: tuple[Conversion, ...]


class Application:
    """Applies a mapping to the tensors of one version, all at once or one by one.

    Args:
        mapping: its rules.
        replicated: plain tensors are the same at every source that gives them.
    """

    def __init__(self, mapping: Mapping, *, replicated: bool) -> None:
        self._rules, self._replicated = mapping.rules, replicated
        self._matched = [0] * len(mapping.rules)
        self._names: dict[str, None] = {}

    def whole(self, tensors: object) -> MappedTensors:
        """Apply it to all tensors of a version.

        Raises:
            CheckpointError: a rule cannot be applied; names it, the tensor, and the cure.
        """
        if not isinstance(tensors, MappingOf):
            return MappedTensors(given(tensors, replicated=self._replicated), ())
        alike = self._replicated or any(map(is_dtensor, tensors.values()))
        return self._given(self._apply(tensors, alike), alike)

    def one(self, name: object, value: object) -> MappedTensors:
        """Apply it to one tensor of those that come one by one.

        Raises:
            CheckpointError: as :meth:`whole`, or a rule needs several tensors at once.
        """
        for number, rule in enumerate(self._rules, 1):
            if rule.needs_all:
                raise CheckpointError(
                    f"rule {number} ({rule}) looks at several tensors, which come one by one; give a mapping of all"
                )
        return self._given(self._apply({name: value}, self._replicated), self._replicated)

    def check_matched(self) -> None:
        """
        Raises:
            CheckpointError: a rule that is not optional has matched nothing; names it and the name that is closest.
        """
        for number, (rule, matched) in enumerate(zip(self._rules, self._matched, strict=True), 1):
            if not matched and not rule.optional:
                pattern = next(str(getattr(rule, name)) for name in rule.__struct_fields__)
                near = difflib.get_close_matches(pattern, self._names, 1, 0.0)
                there = f" (there is '{near[0]}')" if near else ""
                raise CheckpointError(
                    f"rule {number} ({rule}) matches no tensor; correct it{there}, or say optional=True"
                )

    def _apply(self, given: MappingOf[Any, Any], alike: bool) -> Tensors:
        for name in given:
            check_name(name)
        self._names.update(dict.fromkeys(given))
        tensors = {name: MappedTensor(name, value, alike) for name, value in given.items()}
        for number, rule in enumerate(self._rules):
            try:
                tensors, matched = rule.apply(tensors)
            except (CheckpointError, ConfigError) as error:
                raise type(error)(f"rule {number + 1} ({rule}): {error}") from error
            self._matched[number] += matched
        return tensors

    def _given(self, tensors: Tensors, alike: bool) -> MappedTensors:
        parts: list[GivenTensor] = []
        made: defaultdict[str, list[str]] = defaultdict(list)
        for name, tensor in tensors.items():
            if tensor.boxed is None:
                parts += given({name: tensor.value}, replicated=alike)
                continue
            parts += tensor.boxed.given(name)
            made["; ".join(tensor.how)].append(name)
        return MappedTensors(parts, tuple(Conversion(how, tuple(names)) for how, names in made.items()))
