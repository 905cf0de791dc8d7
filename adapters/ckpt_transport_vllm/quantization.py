"""Decides which quantized engines can be updated, and which weights they can be given.

vLLM copies what a loader brings over what a parameter holds, whatever the two types are: BF16 weights into FP8
parameters, or FP8 codes into BF16 ones, give no error and wrong answers. Both are refused here, before the first byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckpt_transport import ConfigError, PlanMismatchError
from ckpt_transport.spi import TensorSpec
from ckpt_transport_fp8.config import COMPRESSED, FP8, Quantization, is_quantized, parse
from ckpt_transport_fp8.scheme import E4M3, WEIGHT, Scheme
from ckpt_transport_fp8.target import FLOATS
from ckpt_transport_vllm.updated_model import UpdatedModel

COVERED = (FP8, COMPRESSED, "fp8_per_tensor", "fp8_per_block", "fp8_per_channel")
"""The methods of vLLM that are covered, in all of its releases that are supported.

What was tried is in docs/reference/vllm-versions.md. None of the releases that were tried needs a patch: vLLM's own
layerwise reload brings every parameter and scale to what a fresh start gives; see tests/vllm/fp8_modes.py.
"""


def check_quantization(target: UpdatedModel) -> None:
    """Refuse models whose quantization is not covered.

    Raises:
        ConfigError: how the model is quantized is not covered.
    """
    method = target.model_config.quantization
    if method is None:
        return
    if str(method) not in COVERED:
        raise ConfigError(
            f"quantization '{method}' is not covered, and an update could leave wrong weights without an error; "
            f"covered are {', '.join(COVERED)}, and models that are not quantized"
        )
    serialized(target)


def serialized(target: UpdatedModel) -> Quantization | None:
    """How weights are quantized in the model's checkpoint; None when they are not, whatever the engine does with them.

    Raises:
        ConfigError: in a way that is not covered.
    """
    config = target.model_config.hf_config.to_dict()
    return parse(config, f"the model {target.model_config.model}") if is_quantized(config) else None


def check_tensors(
    target: UpdatedModel, tensors: Sequence[TensorSpec], expected: Sequence[TensorSpec] | None, label: str
) -> None:
    """Whether tensors are of the kind that the model's loader takes.

    Args:
        target: the model.
        tensors: what a version brings.
        expected: the tensors of the model's own checkpoint; None when it is not here, and its configuration decides.
        label: what people call the engine.

    Raises:
        PlanMismatchError: they are not; names the tensor.
    """
    quantization = serialized(target) if expected is None else None
    known = {spec.name: spec.dtype for spec in expected or ()}
    brought = {spec.name: spec for spec in tensors}
    for spec in tensors:
        scheme = None if quantization is None else _scheme_of(spec, quantization)
        wants_fp8 = scheme is not None if expected is None else known.get(spec.name) == E4M3
        if wants_fp8 and spec.dtype in FLOATS:
            raise PlanMismatchError(
                f"tensor {spec} is not quantized, and {label} serves a checkpoint in which it is FP8; quantize it on "
                "the way: ckpt_transport_fp8.quantized, or --quantize-for"
            )
        takes_fp8 = quantization is not None if expected is None else known.get(spec.name) not in FLOATS
        if not takes_fp8 and spec.dtype.startswith("F8_"):
            raise PlanMismatchError(
                f"tensor {spec} is FP8, and {label} takes the weights of a checkpoint in which it is not; bring BF16 "
                "weights, which an engine that quantizes online quantizes itself"
            )
        if scheme is not None:
            _check_scale(spec, scheme, brought, label)


def _scheme_of(spec: TensorSpec, quantization: Quantization) -> Scheme | None:
    """How a tensor is quantized in the model's checkpoint, by its configuration."""
    module, _, last = spec.name.rpartition(".")
    group = quantization.group_of(module)
    return group.scheme if group is not None and last == WEIGHT and len(spec.shape) == 2 else None


def _check_scale(spec: TensorSpec, scheme: Scheme, brought: Mapping[str, TensorSpec], label: str) -> None:
    name, shapes = scheme.scale_name(spec.name), scheme.scale_shapes(spec.shape)
    scale = brought.get(name)
    if scale is None or scale.shape not in shapes:
        found = "is missing" if scale is None else f"is of shape {list(scale.shape)}"
        raise PlanMismatchError(f"{name} {found}, and {label} needs it of shape {list(shapes[0])} for {spec}")
