"""Rules that make one tensor of several."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ckpt_transport.checkpoint.boxes import joined
from ckpt_transport.checkpoint.rule import MappedTensor, Rule, Tensors, check_pattern, expanded, matches, replaced
from ckpt_transport.errors import CheckpointError, ConfigError

INDEX = "index"
"""Stands for the number of a tensor in a stack: ``{index}`` in a name, ``(?P<index>[0-9]+)`` in a pattern."""


class Fuse(Rule, frozen=True):
    """Makes one tensor of several, along one dimension, as ``qkv`` of ``q``, ``k`` and ``v``.

    Attributes:
        names: a pattern for each piece, in their order.
        into: the name of the whole, by the groups of each pattern.
        dim: along which.
    """

    needs_all = True
    names: tuple[str, ...]
    into: str
    dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for pattern in self.names:
            check_pattern(pattern)
        if not self.names:
            raise ConfigError("fuse needs a pattern for each piece")

    def apply(self, tensors: Tensors) -> tuple[Tensors, int]:
        wholes: dict[str, dict[int, str]] = {}
        for number, pattern in enumerate(self.names):
            for name, match in matches(pattern, tensors):
                _add_piece(wholes.setdefault(expanded(match, self.into), {}), number, name)
        for whole, pieces in wholes.items():
            missing = [self.names[number] for number in range(len(self.names)) if number not in pieces]
            if missing:
                raise CheckpointError(
                    f"'{whole}' is to be made of {len(self.names)} tensors, and there is none called {missing[0]} "
                    f"beside '{next(iter(pieces.values()))}'"
                )
        return _joined(
            tensors, {whole: [pieces[n] for n in sorted(pieces)] for whole, pieces in wholes.items()}, self.dim, self
        )


class Stack(Rule, frozen=True):
    """Makes one tensor of those whose pattern's group ``index`` counts from 0, as of experts."""

    needs_all = True
    names: str
    into: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if INDEX not in check_pattern(self.names).groupindex:
            raise ConfigError(f"stack needs a group (?P<{INDEX}>[0-9]+) in '{self.names}'")

    def apply(self, tensors: Tensors) -> tuple[Tensors, int]:
        wholes: dict[str, dict[int, str]] = {}
        for name, match in matches(self.names, tensors):
            _add_piece(wholes.setdefault(expanded(match, self.into), {}), self._number(match), name)
        for whole, pieces in wholes.items():
            if missing := sorted(set(range(len(pieces))) - pieces.keys()):
                raise CheckpointError(
                    f"'{whole}' is to be made of {len(pieces)} tensors, and number {missing[0]} is none"
                )
        layers = {name: replace(tensors[name], boxed=tensors[name].boxes().stacked()) for name in _all(wholes)}
        return _joined(
            tensors | layers, {whole: [pieces[n] for n in sorted(pieces)] for whole, pieces in wholes.items()}, 0, self
        )

    def _number(self, match: re.Match[str]) -> int:
        if not (match[INDEX] or "").isdecimal():
            raise CheckpointError(f"'{match[0]}' has no number where '{self.names}' looks for one; correct the rule")
        return int(match[INDEX])


def _all(wholes: Mapping[str, Mapping[int, str]]) -> set[str]:
    return {name for pieces in wholes.values() for name in pieces.values()}


def _add_piece(pieces: dict[int, str], number: int, name: str) -> None:
    """
    Raises:
        CheckpointError: there is another one of that number; names both.
    """
    if (other := pieces.setdefault(number, name)) != name:
        raise CheckpointError(f"'{other}' and '{name}' are both piece {number} of one tensor; drop one of them")


def _joined(tensors: Tensors, wholes: Mapping[str, Sequence[str]], dim: int, rule: Rule) -> tuple[Tensors, int]:
    """Put each whole in the place of its first piece.

    Raises:
        CheckpointError: pieces do not fit together, or a tensor is two of them; names it.
    """
    used = Counter(name for names in wholes.values() for name in names)
    if twice := [name for name, times in used.items() if times > 1]:
        raise CheckpointError(f"'{twice[0]}' is to be {used[twice[0]]} pieces, and can be one; correct the rule")
    pieces: dict[str, list[tuple[str, MappedTensor]]] = {}
    for whole, names in wholes.items():
        boxed = [tensors[name].boxes() for name in names]
        first = boxed[0]
        for name, other in zip(names, boxed, strict=True):
            shapes = [tuple(size for d, size in enumerate(each.shape) if d != dim) for each in (first, other)]
            if other.dtype != first.dtype or shapes[0] != shapes[1] or not 0 <= dim < len(first.shape):
                raise CheckpointError(
                    f"'{names[0]}' is {first.dtype} {list(first.shape)} and '{name}' is {other.dtype} "
                    f"{list(other.shape)}: they cannot be joined along dimension {dim}"
                )
        made = replace(tensors[names[0]], value=None).made(joined(boxed, dim), rule)
        pieces[names[0]] = [(whole, made)]
        pieces.update((name, []) for name in names[1:])
    return replaced(tensors, pieces), len(pieces)
