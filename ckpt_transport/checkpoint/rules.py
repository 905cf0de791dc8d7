"""A rule says how the trainer's tensors become the engine's; rules are plain data, in Python as in TOML.

Patterns are regular expressions. They must match a whole name, and what they say a name becomes may refer to their
groups, as ``\\1``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import torch

from ckpt_transport import dtypes
from ckpt_transport.checkpoint.join_rules import INDEX
from ckpt_transport.checkpoint.join_rules import Fuse as Fuse
from ckpt_transport.checkpoint.join_rules import Stack as Stack
from ckpt_transport.checkpoint.lora import Lora as Lora
from ckpt_transport.checkpoint.lora import lora_rules
from ckpt_transport.checkpoint.rule import (
    MappedTensor,
    Rule,
    Tensors,
    check_pattern,
    dtype_of,
    expanded,
    matches,
    renamed,
    replaced,
)
from ckpt_transport.errors import CheckpointError, ConfigError

FLOATS = ("BF16", "F16", "F32", "F64")
"""Types that can be cast, and be cast to."""


class Strip(Rule, frozen=True):
    """Takes a prefix off names, as ``module.`` or ``base_model.model.``."""

    prefix: str

    def apply(self, tensors: Tensors) -> tuple[Tensors, int]:
        return renamed(tensors, {name: name[len(self.prefix) :] for name in tensors if name.startswith(self.prefix)})


class Add(Rule, frozen=True):
    """Puts a prefix before all names."""

    prefix: str

    def apply(self, tensors: Tensors) -> tuple[Tensors, int]:
        return renamed(tensors, {name: self.prefix + name for name in tensors})


class Unwrap(Rule, frozen=True):
    """Takes a part out of names wherever it stands between dots, as ``_orig_mod`` or ``_fsdp_wrapped_module``."""

    part: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.part.strip("."):
            raise ConfigError("unwrap needs a part of names, as '_orig_mod'")

    def apply(self, tensors: Tensors) -> tuple[Tensors, int]:
        wrapped = self.part.strip(".").split(".")
        names = {name: ".".join(_without(name.split("."), wrapped)) for name in tensors}
        return renamed(tensors, {name: new for name, new in names.items() if new != name})


class Rename(Rule, frozen=True):
    """Gives names that match a pattern another one."""

    names: str
    to: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.names)

    def apply(self, tensors: Tensors) -> tuple[Tensors, int]:
        return renamed(tensors, {name: expanded(match, self.to) for name, match in matches(self.names, tensors)})


class Drop(Rule, frozen=True):
    """Leaves tensors out, as ``.*inv_freq`` or ``v_head\\..*``."""

    names: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.names)

    def apply(self, tensors: Tensors) -> tuple[Tensors, int]:
        dropped = {name for name, _ in matches(self.names, tensors)}
        return {name: tensor for name, tensor in tensors.items() if name not in dropped}, len(dropped)


class Cast(Rule, frozen=True):
    """Sends floating-point tensors as another type: BF16, F16, F32 or F64. Others stay as they are."""

    dtype: str
    names: str = ".*"

    def __post_init__(self) -> None:
        if isinstance(self.dtype, torch.dtype) and dtypes.name_of(self.dtype) in FLOATS:
            raise ConfigError(f"a cast takes the name of a type; say '{dtypes.name_of(self.dtype)}' for {self.dtype}")
        super().__post_init__()
        check_pattern(self.names)
        if self.dtype not in FLOATS:
            raise ConfigError(
                f"a cast is to {', '.join(FLOATS)}, and not to '{self.dtype}'; for FP8 use ckpt_transport_fp8"
            )

    def apply(self, tensors: Tensors) -> tuple[Tensors, int]:
        to = dtypes.TORCH[self.dtype]
        found = dict(tensors)
        found_names = list(matches(self.names, tensors))
        for name, _ in found_names:
            dtype = dtype_of(tensors[name])
            if dtype is not None and dtype is not to and dtypes.name_of(dtype) in FLOATS:
                how = f"{self.dtype} from {dtypes.name_of(dtype)}"
                found[name] = tensors[name].made(tensors[name].boxes().cast(to), how)
        return found, len(found_names)


class Cut(Rule, frozen=True):
    """Keeps the first rows of tensors, as of a vocabulary that is padded at the trainer."""

    names: str
    rows: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.names)
        if self.rows < 1:
            raise ConfigError(f"cut keeps {self.rows} rows and must keep at least 1")

    def apply(self, tensors: Tensors) -> tuple[Tensors, int]:
        found = dict(tensors)
        found_names = list(matches(self.names, tensors))
        for name, _ in found_names:
            boxed = tensors[name].boxes()
            if not boxed.shape or boxed.shape[0] < self.rows:
                raise CheckpointError(f"tensor '{name}' is of shape {list(boxed.shape)} and has no {self.rows} rows")
            if boxed.shape[0] > self.rows:
                found[name] = tensors[name].made(boxed.cut(0, 0, self.rows), self)
        return found, len(found_names)


class Split(Rule, frozen=True):
    """Makes several tensors of each, along one dimension, as ``q``, ``k`` and ``v`` of ``qkv``.

    Attributes:
        into: names of the pieces, in their order.
        sizes: of the pieces; none for equal ones.
        dim: along which.
    """

    names: str
    into: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.names)
        if not self.into or (self.sizes and len(self.sizes) != len(self.into)):
            raise ConfigError(f"split makes {len(self.into)} tensors of {len(self.sizes)} sizes; give one for each")
        if any(size < 0 for size in self.sizes):
            raise ConfigError(f"split makes tensors of sizes {list(self.sizes)}, and none can be below 0")

    def apply(self, tensors: Tensors) -> tuple[Tensors, int]:
        pieces: dict[str, list[tuple[str, MappedTensor]]] = {}
        for name, match in matches(self.names, tensors):
            boxed = tensors[name].boxes()
            sizes = self._sizes(name, boxed.shape)
            made = boxed.split(self.dim, sizes)
            pieces[name] = [
                (expanded(match, into), tensors[name].made(piece, self))
                for into, piece in zip(self.into, made, strict=True)
            ]
        return replaced(tensors, pieces), len(pieces)

    def _sizes(self, name: str, shape: tuple[int, ...]) -> Sequence[int]:
        whole = shape[self.dim] if 0 <= self.dim < len(shape) else -1
        sizes = self.sizes or (whole // len(self.into),) * len(self.into)
        if sum(sizes) != whole:
            raise CheckpointError(
                f"tensor '{name}' is of shape {list(shape)}, and cannot be split along dimension {self.dim} into "
                f"{list(self.sizes) if self.sizes else f'{len(self.into)} equal pieces'}"
            )
        return sizes


class Unstack(Rule, frozen=True):
    """Makes a tensor of each index of the first dimension, as of experts; ``{index}`` in the name stands for it."""

    names: str
    into: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.names)

    def apply(self, tensors: Tensors) -> tuple[Tensors, int]:
        pieces: dict[str, list[tuple[str, MappedTensor]]] = {}
        for name, match in matches(self.names, tensors):
            boxed = tensors[name].boxes()
            if not boxed.shape:
                raise CheckpointError(f"tensor '{name}' is a scalar, and no stack")
            into = expanded(match, self.into)
            pieces[name] = [
                (into.replace(f"{{{INDEX}}}", str(index)), tensors[name].made(boxed.select(index), self))
                for index in range(boxed.shape[0])
            ]
        return replaced(tensors, pieces), len(pieces)


class Tie(Rule, frozen=True):
    """Leaves a tensor out whose bytes are those of another one, as ``lm_head.weight`` that is tied to the embedding.

    Attributes:
        name: what is left out.
        to: what it equals.
    """

    needs_all = True
    reads_bytes = True
    name: str
    to: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == self.to:
            raise ConfigError(f"tie leaves out '{self.name}', which is to equal itself; give the name of the other one")

    def apply(self, tensors: Tensors) -> tuple[Tensors, int]:
        if self.name not in tensors:
            return tensors, 0
        if self.to not in tensors:
            raise CheckpointError(f"tensor '{self.name}' is to equal '{self.to}', which this source has not; give both")
        same = tensors[self.name].boxes().same_as(tensors[self.to].boxes())
        if same is None:
            raise CheckpointError(
                f"this rank has other parts of '{self.name}' than of '{self.to}' and cannot compare them; drop "
                f"'{self.name}'"
            )
        if not same:
            raise CheckpointError(
                f"tensor '{self.name}' has other bytes than '{self.to}', which it should be tied to; send both, to an "
                "engine that does not tie them, or tie them at the trainer"
            )
        return {name: tensor for name, tensor in tensors.items() if name != self.name}, 1


AnyRule = Strip | Add | Unwrap | Rename | Drop | Cast | Cut | Split | Unstack | Fuse | Stack | Tie | Lora
RULE_NAMES = tuple(kind.__name__.lower() for kind in get_args(AnyRule))
"""What rules are called in files."""


def of_peft(configs: Mapping[str, Any], adapters: Sequence[str] = ("default",)) -> tuple[Rule, ...]:
    """The rules that make of ``state_dict()`` of a PEFT model what ``merge_and_unload()`` of it has.

    Args:
        configs: ``peft_config`` of the model.
        adapters: those that are merged; the others are left out.

    Raises:
        ConfigError: an adapter is not there, or is none that can be merged on the way; names it.
    """
    found: list[Rule] = []
    for adapter in adapters:
        if adapter not in configs:
            raise ConfigError(f"there is no adapter '{adapter}'; there are: {', '.join(configs)}")
        found += lora_rules(adapter, configs[adapter])
        found.append(Unwrap(f"modules_to_save.{adapter}", optional=True))
    others = "|".join(re.escape(other) for other in configs if other not in adapters)
    if others:
        found.append(Drop(rf".*\.(lora_\w+|modules_to_save)\.({others})(\..*)?", optional=True))
    return (
        *found,
        Drop(r".*\.original_module\..*", optional=True),
        Unwrap("base_layer", optional=True),
        Strip("base_model.model.", optional=True),
    )


def _without(parts: list[str], wrapped: list[str]) -> Iterator[str]:
    at = 0
    while at < len(parts):
        if parts[at : at + len(wrapped)] == wrapped:
            at += len(wrapped)
        else:
            yield parts[at]
            at += 1
