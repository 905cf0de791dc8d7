"""An adapter that was trained beside a model's weights is merged into them on the way, as PEFT merges it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from typing import Any

import torch

from ckpt_transport.checkpoint.base_digests import BaseDigests
from ckpt_transport.checkpoint.boxes import BoxedTensor
from ckpt_transport.checkpoint.dtensors import is_dtensor
from ckpt_transport.checkpoint.rule import MappedTensor, Rule, Tensors, check_pattern
from ckpt_transport.errors import CheckpointError, ConfigError

_digests = BaseDigests()
CURE = "merge it at the trainer, as by merge_and_unload()"
FLOATS = frozenset({torch.bfloat16, torch.float16, torch.float32, torch.float64})
FACTORS = frozenset({(kind, factor, end) for kind, end in (("", ".weight"), ("embedding_", None)) for factor in "AB"})
"""What comes before, at and after the letter of a factor's name."""
NOT_MERGED = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
)
"""Settings of PEFT's LoraConfig that make of an adapter more than a product that is added to a weight."""


class Lora(Rule, frozen=True, kw_only=True):
    """Adds an adapter to the weights that it was trained for: ``scaling * B @ A``, in FP32, and cast once.

    The manifest names a digest of these weights, so that the digest of a plan covers them; digests of buckets cover the
    sums.

    Factors are looked for as PEFT calls them: ``MODULE.lora_A.ADAPTER.weight`` and ``lora_B``, or
    ``lora_embedding_A``. What they are added to is ``MODULE.base_layer.weight`` or ``MODULE.weight``. Factors that are
    DTensors are gathered, so that all ranks must call; weights are not.

    Attributes:
        adapter: its name.
        alpha: the scaling, times the rank.
        names: a pattern of modules' names. Others are left for the next rule, as those with another alpha.
        rank_stabilized: the scaling is alpha by the root of the rank (rsLoRA).
        transposed: weights have a row for each input, as Conv1D of GPT-2 has them (``fan_in_fan_out``).
    """

    needs_all = True
    reads_bytes = True
    adapter: str = "default"
    alpha: float
    names: str = ".*"
    rank_stabilized: bool = False
    transposed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.names)
        if not math.isfinite(self.alpha):
            raise ConfigError(f"alpha of lora {self.adapter} is {self.alpha}; give a finite number")

    def apply(self, tensors: Tensors) -> tuple[Tensors, int]:
        found = dict(tensors)
        merged: dict[str, BoxedTensor] = {}
        beneath = hashlib.blake2b(digest_size=8)
        for module, kind in self._modules(tensors):
            names = [f"{module}.lora_{kind}{factor}.{self.adapter}" for factor in "AB"]
            if not kind:
                names = [f"{name}.weight" for name in names]
            bases = [name for name in (f"{module}.base_layer.weight", f"{module}.weight") if name in tensors]
            for name in names:
                if name not in tensors:
                    raise CheckpointError(f"there is no '{name}' for '{module}'; give both factors of the adapter")
            if not bases:
                raise CheckpointError(
                    f"adapter '{self.adapter}' has factors for '{module}', and there is no "
                    f"'{module}.base_layer.weight' to add them to; give state_dict() of the whole model"
                )
            factors = [_whole(name, found.pop(name)) for name in names]
            base = tensors[bases[0]].boxes()
            merged[bases[0]] = self._merged(bases[0], base, factors, bool(kind) or self.transposed)
            _digests.add(beneath, bases[0], base)
        _digests.forget_freed()
        for name, boxed in merged.items():
            found[name] = found[name].made(boxed, f"{self}, onto weights {beneath.hexdigest()}")
        return found, len(merged)

    def __str__(self) -> str:
        scaling = " by the root of the rank" if self.rank_stabilized else ""
        transposed = ", transposed" if self.transposed else ""
        names = "" if self.names == ".*" else f" for {self.names}"
        return f"lora {self.adapter}, alpha {self.alpha:g}{scaling}{transposed}{names}"

    def _modules(self, tensors: Tensors) -> list[tuple[str, str]]:
        """Modules that the adapter changes, with ``embedding_`` for those that PEFT calls so.

        Raises:
            CheckpointError: it changes one in another way than by a product; names the tensor.
        """
        of_adapter = re.compile(rf"(.*)\.lora_(\w+)\.{re.escape(self.adapter)}(\..*)?")
        selected = check_pattern(self.names)
        modules: dict[tuple[str, str], None] = {}
        for name in tensors:
            match = of_adapter.fullmatch(name)
            if match is None or selected.fullmatch(match[1]) is None:
                continue
            if match[2] == "magnitude_vector":
                raise CheckpointError(f"'{name}' scales the merged weight (DoRA), which is not done on the way; {CURE}")
            if (match[2][:-1], match[2][-1], match[3]) not in FACTORS:
                raise CheckpointError(f"'{name}' is no factor of a product that is added to a weight; {CURE}")
            modules[match[1], match[2][:-1]] = None
        return list(modules)

    def _merged(self, name: str, base: BoxedTensor, factors: list[torch.Tensor], transposed: bool) -> BoxedTensor:
        a, b = factors
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
            raise CheckpointError(
                f"the adapter's factors for '{name}' are of shapes {list(a.shape)} and {list(b.shape)}, which are not "
                f"those of a linear layer or an embedding; {CURE}"
            )
        rank = a.shape[0]
        if rank == 0:
            raise CheckpointError(f"the adapter's factors for '{name}' are of rank 0; leave them out")
        left, right = (a.T, b.T) if transposed else (b, a)
        if base.shape != (left.shape[0], right.shape[1]) or base.dtype not in FLOATS:
            raise CheckpointError(
                f"'{name}' is {base.dtype} {list(base.shape)}, and its adapter adds to floats of shape "
                f"{[left.shape[0], right.shape[1]]}; dequantize it, or {CURE}"
            )
        return base.plus(left, right, self.alpha / (rank**0.5 if self.rank_stabilized else rank))


def lora_rules(adapter: str, config: Any) -> Iterator[Rule]:
    """The rules that a LoraConfig of PEFT asks for: one for each alpha.

    Raises:
        ConfigError: it is the configuration of something else than can be merged on the way; names the setting.
    """
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise ConfigError(f"adapter '{adapter}' is of type {kind}, and only LORA is merged on the way; {CURE}")
    for setting in NOT_MERGED:
        if getattr(config, setting, None):
            raise ConfigError(f"adapter '{adapter}' has {setting}, which is not merged on the way; {CURE}")
    alphas = {rf"(.*\.)?({key})": alpha for key, alpha in (config.alpha_pattern or {}).items()}
    for names, alpha in [*alphas.items(), (".*", config.lora_alpha)]:
        yield Lora(
            adapter=adapter,
            alpha=float(alpha),
            names=names,
            rank_stabilized=bool(config.use_rslora),
            transposed=bool(config.fan_in_fan_out),
            optional=bool(alphas),
        )


def _whole(name: str, factor: MappedTensor) -> torch.Tensor:
    """All of a factor, in memory of its own.

    Raises:
        CheckpointError: this rank has a part of it, and nobody can be asked for the rest.
    """
    if is_dtensor(factor.value):
        return factor.value.full_tensor().detach().to(torch.float32, copy=True)  # type: ignore[no-any-return]
    boxed = factor.boxes()
    if len(boxed.boxes) != 1 or tuple(boxed.boxes[0].tensor.shape) != boxed.shape:
        raise CheckpointError(f"this rank has a part of '{name}', and adapters are merged by their whole factors")
    return boxed.boxes[0].tensor.to(torch.float32, copy=True)
