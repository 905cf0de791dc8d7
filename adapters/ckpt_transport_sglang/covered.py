"""Decides which engines of SGLang can be updated.

SGLang's own loaders copy over what a parameter holds, in whatever form kernels read it. Where SGLang puts weights into
another form when they have been loaded, a loader that is run again leaves wrong weights and no error: such engines are
refused here by name, before the first byte.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import Any

from ckpt_transport import ConfigError
from ckpt_transport.spi import ReleaseRange
from ckpt_transport_sglang.served_model import ServedModel

RELEASES = ReleaseRange("SGLang", first=(0, 5, 23), last=(0, 5, 23))
PLAIN = ("UnquantizedLinearMethod", "UnquantizedEmbeddingMethod", "UnquantizedFusedMoEMethod")
"""The ways of SGLang to keep weights as a checkpoint has them."""
STORES = ("enable_lmcache", "enable_flexkv", "enable_unified_cache_external_linker")
"""Settings by which keys and values go to a store outside, which finds them by tokens, whatever weights made them."""
SETTINGS: dict[str, object] = {
    "pp_size": 1,
    "dp_size": 1,
    "enable_eplb": False,
    "weight_cache_mode": "off",
    "offload_group_size": -1,
    **dict.fromkeys(STORES, False),
}
"""Those of SGLang that matter to an update, and what is covered."""
BENEATH_LORA = ".base_layer."
"""In the name of a parameter that SGLang has wrapped for LoRA adapters, where it has no other name."""


def check_covered(model: ServedModel) -> None:
    """
    Raises:
        ConfigError: this engine cannot be updated; says why, and how one is started that can.
    """
    RELEASES.check(importlib.metadata.version("sglang"))
    reason = next(_reasons(model), "")
    if reason:
        raise ConfigError(f"this SGLang cannot be updated in place: {reason}")


def _reasons(model: ServedModel) -> Iterator[str]:
    settings, module = model.settings, model.module
    if model.config.quantization is not None:
        yield (
            f"quantization '{model.config.quantization}' is not covered: SGLang's loaders would leave its weights and "
            "scales in the form of the checkpoint; serve the model in BF16"
        )
    for name, value in SETTINGS.items():
        if getattr(settings, name, value) not in (value, None):
            yield f"it was started with {name}={getattr(settings, name)}, and {value} is what is covered"
    hidden = next((name for name, _ in module.named_parameters() if BENEATH_LORA in name), None)
    if hidden is not None:
        yield (
            f"{hidden} is wrapped for LoRA adapters, and SGLang's loaders pass over what they do not find by its own "
            "name; start it without --enable-lora, or have no experts among --lora-target-modules"
        )
    for name, each in module.named_modules():
        method = getattr(each, "quant_method", None)
        if method is not None and type(method).__name__ not in PLAIN:
            yield f"{name} is kept by {type(method).__name__}, and covered are {', '.join(PLAIN)}"
        if getattr(each, "use_intel_amx_backend", False):
            yield f"{name} was packed for AMX when it was loaded; start SGLang on a machine or in a mode without"
        if getattr(method, "use_flashinfer_trtllm_moe", False):
            yield f"{name} has another form for its kernels; take another --moe-runner-backend than flashinfer_trtllm"
        if (reason := _derived(each)) is not None:
            yield f"{name}: {reason}"
    if hasattr(module, "post_load_weights"):
        yield f"{type(module).__name__} computes weights of its own from those of a checkpoint, beside its parameters"


def _derived(module: Any) -> str | None:
    """What SGLang itself says of a module that keeps something computed from weights."""
    reason = getattr(module, "_derived_weight_cache_error", None)
    return None if reason is None else str(reason)
