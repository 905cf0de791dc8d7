"""Parses a ``quantization_config``: it says which weights are FP8, and with which scales.

FP8 checkpoints come with one of two kinds. ``fp8`` is that of DeepSeek, Kimi, Qwen and others; Hugging Face's
``FineGrainedFP8Config`` and vLLM's ``Fp8Config`` read it. ``compressed-tensors`` is that of llm-compressor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_transport import ConfigError
from ckpt_transport_fp8.scheme import Granularity, Scheme

FP8, COMPRESSED = "fp8", "compressed-tensors"
LINEAR = "Linear"
"""As a target: every linear layer."""
PATTERN = "re:"
"""Begins a name that is a regular expression, in compressed-tensors."""
NOT_LINEAR = frozenset(
    {"embed_tokens", "lm_head", "wte", "wpe", "word_embeddings", "embed_in", "embed_out", "embeddings", "gate"}
    | {"router", "shared_expert_gate", "shared", "eh_proj"}
)
"""Last parts of the names of modules that have a matrix and stay as they are: embeddings, heads and routers."""


@dataclass(frozen=True, slots=True)
class ConfigGroup:
    """Modules that are quantized in one way.

    Attributes:
        targets: names, patterns, or LINEAR.
        scheme: the way.
        needs_input_scale: activations have a scale of their own in the checkpoint, ``input_scale``.
    """

    targets: tuple[str, ...]
    scheme: Scheme
    needs_input_scale: bool


@dataclass(frozen=True, slots=True)
class Quantization:
    """A ``quantization_config``, as far as it concerns weights.

    Attributes:
        method: its ``quant_method``.
        groups: the first that a module belongs to counts.
        ignored: modules that stay as they are.
    """

    method: str
    groups: tuple[ConfigGroup, ...]
    ignored: tuple[str, ...]

    def group_of(self, module: str) -> ConfigGroup | None:
        """Return how ``module`` is quantized; None when it is ignored, or no target."""
        if any(_names(entry, module) for entry in self.ignored):
            return None
        return next((group for group in self.groups if _targets(group, module)), None)


def parse(config: Mapping[str, Any], origin: str) -> Quantization:
    """Return what a model's ``config.json`` says about quantization.

    Args:
        config: its content.
        origin: where it is from, for messages.

    Raises:
        ConfigError: the model is not quantized, or in a way that is not known here.
    """
    found = _find(config)
    if found is None:
        raise ConfigError(
            f"{origin} has no quantization_config: that model is not quantized in its checkpoint. An engine that "
            "quantizes while it loads takes the checkpoint as it is, in BF16"
        )
    method = str(found.get("quant_method", ""))
    if method == FP8:
        return _fp8(found, origin)
    if method == COMPRESSED:
        return _compressed(found, origin)
    raise ConfigError(f"{origin} has quant_method '{method}'; weights are quantized for '{FP8}' and '{COMPRESSED}'")


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` says that the checkpoint beside it is quantized, in whatever way."""
    return _find(config) is not None


def _find(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the ``quantization_config``; a model of several parts may have it with its text model."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(part.get("quantization_config"), Mapping):
            found: Mapping[str, Any] = part["quantization_config"]
            return found
    return None


def _fp8(config: Mapping[str, Any], origin: str) -> Quantization:
    block = config.get("weight_block_size")
    power = str(config.get("scale_fmt") or "")
    if config.get("fmt", "e4m3") != "e4m3" or power not in ("", "float", "ue8m0"):
        raise ConfigError(
            f"{origin} wants fmt '{config.get('fmt')}' with scale_fmt '{power}'; known are e4m3, and ue8m0 or none"
        )
    if block is None:
        scheme = Scheme(Granularity.TENSOR, "weight_scale", powers_of_two=bool(power == "ue8m0"))
    else:
        scheme = Scheme(Granularity.BLOCK, "weight_scale_inv", _block(block, origin), power == "ue8m0")
    static = config.get("activation_scheme", "dynamic") == "static"
    ignored = config.get("ignored_layers") or config.get("modules_to_not_convert") or ()
    return Quantization(FP8, (ConfigGroup((LINEAR,), scheme, static),), _entries(ignored, origin))


def _compressed(config: Mapping[str, Any], origin: str) -> Quantization:
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise ConfigError(f"{origin} has no config_groups for {COMPRESSED}")
    parsed = tuple(_group(name, group, f"{origin}: config_groups.{name}") for name, group in groups.items())
    return Quantization(COMPRESSED, parsed, _entries(config.get("ignore") or (), origin))


def _group(name: str, group: Any, origin: str) -> ConfigGroup:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ConfigError(f"{origin} says nothing about weights")
    if weights.get("num_bits") != 8 or weights.get("type") != "float" or not weights.get("symmetric", True):
        raise ConfigError(
            f"{origin} wants weights of {weights.get('num_bits')} bits and type {weights.get('type')}; "
            "known are symmetric floats of 8 bits"
        )
    strategy = weights.get("strategy")
    if strategy not in tuple(Granularity):
        raise ConfigError(f"{origin} has strategy '{strategy}'; known are {', '.join(Granularity)}")
    granularity = Granularity(strategy)
    block = weights.get("block_structure") if granularity is Granularity.BLOCK else (128, 128)
    scheme = Scheme(granularity, "weight_scale", _block(block, origin))
    activations = group.get("input_activations")
    static = isinstance(activations, Mapping) and not activations.get("dynamic", False)
    return ConfigGroup(_entries(group.get("targets") or (LINEAR,), origin), scheme, static)


def _block(value: Any, origin: str) -> tuple[int, int]:
    if not isinstance(value, Sequence) or len(value) != 2 or not all(type(n) is int and n > 0 for n in value):
        raise ConfigError(f"{origin} has blocks of {value!r}, which are not two positive sizes")
    return value[0], value[1]


def _entries(value: Any, origin: str) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(n, str) for n in value):
        raise ConfigError(f"{origin} has {value!r} where names of modules belong")
    for pattern in (entry for entry in value if entry.startswith(PATTERN)):
        try:
            re.compile(pattern.removeprefix(PATTERN))
        except re.error as error:
            raise ConfigError(f"{origin} has '{pattern}', which is no regular expression: {error}") from error
    return tuple(value)


def _targets(group: ConfigGroup, module: str) -> bool:
    linear = LINEAR in group.targets and module.rpartition(".")[2] not in NOT_LINEAR
    return linear or any(_names(entry, module) for entry in group.targets if entry != LINEAR)


def _names(entry: str, module: str) -> bool:
    """Whether an entry means ``module``: by its whole name, its last parts, or the first ones."""
    if entry.startswith(PATTERN):
        return re.match(entry.removeprefix(PATTERN), module) is not None
    return f".{module}.".startswith(f".{entry}.") or f".{module}.".endswith(f".{entry}.")
