"""A mapping may be found out by comparing names, types and shapes with those that an engine expects."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from collections.abc import Mapping as MappingOf

from ckpt_transport import dtypes
from ckpt_transport.checkpoint.boxes import BoxedTensor
from ckpt_transport.checkpoint.mapping import Mapping
from ckpt_transport.checkpoint.rule import MappedTensor, Rule, Tensors
from ckpt_transport.checkpoint.rules import (
    FLOATS,
    Add,
    Cast,
    Cut,
    Drop,
    Fuse,
    Split,
    Stack,
    Strip,
    Tie,
    Unstack,
    Unwrap,
)
from ckpt_transport.planning.values.manifest import TensorSpec

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch puts between the parts of names, and no model does."""
PREFIXES = ("module.", "base_model.model.")
"""What DistributedDataParallel and PEFT put before all names."""
LEFTOVERS = tuple(
    re.compile(rf"(.*\.)?{leftover}") for leftover in ("inv_freq", "_extra_state", r"v_head\..*", r"value_head\..*")
)
"""What trainers keep and engines do not load. It may stand outside of what is wrapped, and have no prefix."""
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers that one side may have as one tensor, and the other as several."""
EXPERTS = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)")
"""Experts as transformers 5 stores them, all of a layer in one tensor."""
ROWS_OF_WORDS = re.compile(r".*(embed|lm_head|wte).*")
"""Tensors with a row for each word of the vocabulary, which trainers pad."""

Wanted = MappingOf[str, TensorSpec]


def find_mapping(given: MappingOf[str, TensorSpec | None], expected: Sequence[TensorSpec] | None) -> Mapping:
    """Find the rules that make of what a trainer has what an engine expects.

    Only what is known to be harmless is left out. What no rule explains stays as it is, and the engine refuses it by
    name.

    Args:
        given: all that is given, by name; None for what is no tensor.
        expected: what the engine expects; None where only its loader knows. Then well-known prefixes are taken off.
    """
    tensors = {name: _described(name, spec) for name, spec in given.items()}
    wanted = {spec.name: spec for spec in expected or ()}
    found: list[Rule] = []
    everything = [_wrappers, _leftovers, _prefixes, _experts, _stacks, _pieces, _wholes, _tied, _padding, _casts]
    for find in everything if expected is not None else [_wrappers, _prefixes]:
        for rule in list(find(tensors, wanted)):
            tensors, _ = rule.apply(tensors)
            found.append(rule)
    return Mapping.of(*found)


def _described(name: str, spec: TensorSpec | None) -> MappedTensor:
    """A tensor of which nobody has anything: rules work on it all the same."""
    boxed = (
        None
        if spec is None or spec.dtype not in dtypes.TORCH
        else BoxedTensor(dtypes.TORCH[spec.dtype], spec.shape, ())
    )
    return MappedTensor(name, None, False, boxed)


def _wrappers(tensors: Tensors, wanted: Wanted) -> Iterator[Rule]:
    for part in WRAPPERS:
        if any(part in name.split(".") for name in tensors) and not any(part in name.split(".") for name in wanted):
            yield Unwrap(part)


def _prefixes(tensors: Tensors, wanted: Wanted) -> Iterator[Rule]:
    if not wanted:
        names = [name for name in tensors if not any(pattern.fullmatch(name) for pattern in LEFTOVERS)]
        yield from (Strip(prefix) for prefix in PREFIXES if names and all(name.startswith(prefix) for name in names))
        return
    for rule, these, others in ((Strip, tensors.keys(), wanted.keys()), (Add, wanted.keys(), tensors.keys())):
        for prefix in _common_prefixes(these):
            if not any(name.startswith(prefix) for name in others) and any(
                name.removeprefix(prefix) in others for name in these
            ):
                yield rule(prefix)
                return


def _common_prefixes(names: Collection[str]) -> list[str]:
    """Prefixes of all names that end with a dot."""
    first = min(names, default="")
    prefixes = (first[: at + 1] for at, character in enumerate(first) if character == ".")
    return [prefix for prefix in prefixes if all(name.startswith(prefix) for name in names)]


def _leftovers(tensors: Tensors, wanted: Wanted) -> Iterator[Rule]:
    for pattern in LEFTOVERS:
        if any(map(pattern.fullmatch, tensors)) and not any(map(pattern.fullmatch, wanted)):
            yield Drop(pattern.pattern)


def _experts(tensors: Tensors, wanted: Wanted) -> Iterator[Rule]:
    for name, tensor in tensors.items():
        if name in wanted or tensor.boxed is None or (match := EXPERTS.fullmatch(name)) is None:
            continue
        layer = FUSED["gate_up_proj"][0] if match[2] == "gate_up_proj" else match[2]
        one = wanted.get(f"{match[1]}.0.{layer}.weight")
        pieces = 2 if match[2] == "gate_up_proj" else 1
        if one is not None and tensor.boxed.shape[1:] == (pieces * one.shape[0], *one.shape[1:]):
            yield Unstack(EXPERTS.pattern, r"\1.{index}.\2.weight")
            return


def _stacks(tensors: Tensors, wanted: Wanted) -> Iterator[Rule]:
    """Experts that the trainer has one by one are one tensor at the engine."""
    layers: set[str] = set()
    for name in wanted.keys() - tensors.keys():
        match = EXPERTS.fullmatch(name)
        if match is not None and f"{match[1]}.0.{FUSED.get(match[2], (match[2],))[0]}.weight" in tensors:
            layers.add(match[2])
    one = r"(.*\.experts\.[0-9]+)"
    for whole in sorted(layers & FUSED.keys()):
        yield Fuse(tuple(rf"{one}\.{part}\.weight" for part in FUSED[whole]), rf"\1.{whole}.weight")
    if layers:
        yield Stack(rf"(.*\.experts)\.(?P<index>[0-9]+)\.({'|'.join(sorted(layers))})\.weight", r"\1.\3")


def _pieces(tensors: Tensors, wanted: Wanted) -> Iterator[Rule]:
    """One tensor at the trainer is several at the engine."""
    for whole, parts in FUSED.items():
        pattern = rf"(.*\.)?{whole}\.(.*)"
        sizes = set()
        for name in tensors:
            if name not in wanted and (match := re.fullmatch(pattern, name)) is not None:
                specs = [wanted.get(f"{match[1] or ''}{part}.{match[2]}") for part in parts]
                sizes.add(tuple(spec.shape[0] if spec is not None and spec.shape else -1 for spec in specs))
        if len(sizes) == 1 and -1 not in (found := sizes.pop()):
            yield Split(pattern, tuple(rf"\1{part}.\2" for part in parts), found)


def _wholes(tensors: Tensors, wanted: Wanted) -> Iterator[Rule]:
    """Several tensors at the trainer are one at the engine."""
    for whole, parts in FUSED.items():
        ends = [
            match for name in wanted.keys() - tensors.keys() if (match := re.fullmatch(rf"(.*\.)?{whole}\.(.*)", name))
        ]
        if ends and all(f"{match[1] or ''}{part}.{match[2]}" in tensors for match in ends for part in parts):
            yield Fuse(tuple(rf"(.*\.)?{part}\.(.*)" for part in parts), rf"\1{whole}.\2")


def _tied(tensors: Tensors, wanted: Wanted) -> Iterator[Rule]:
    for head in tensors.keys() - wanted.keys():
        if head.rpartition(".")[0].rpartition(".")[2] == "lm_head":
            embeddings = [name for name in tensors.keys() & wanted.keys() if name.endswith("embed_tokens.weight")]
            if len(embeddings) == 1 and tensors[head].boxed == tensors[embeddings[0]].boxed:
                yield Tie(head, embeddings[0])


def _padding(tensors: Tensors, wanted: Wanted) -> Iterator[Rule]:
    for name in tensors:
        boxed, spec = tensors[name].boxed, wanted.get(name)
        if boxed is None or spec is None or not spec.shape or not boxed.shape or not ROWS_OF_WORDS.fullmatch(name):
            continue
        if boxed.shape[1:] == spec.shape[1:] and boxed.shape[0] > spec.shape[0]:
            yield Cut(re.escape(name), spec.shape[0])


def _casts(tensors: Tensors, wanted: Wanted) -> Iterator[Rule]:
    floats = {name: spec.dtype for name, spec in wanted.items() if name in tensors and spec.dtype in FLOATS}
    different: dict[str, list[str]] = {}
    for name, dtype in floats.items():
        boxed = tensors[name].boxed
        if boxed is not None and dtypes.name_of(boxed.dtype) in FLOATS and dtypes.name_of(boxed.dtype) != dtype:
            different.setdefault(dtype, []).append(name)
    for dtype, names in different.items():
        everything = set(floats.values()) == {dtype}
        yield Cast(dtype) if everything else Cast(dtype, "|".join(map(re.escape, names)))
