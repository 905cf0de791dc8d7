"""Knows which engines of vLLM this adapter works with."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

from ckpt_transport import ConfigError
from ckpt_transport.spi import ReleaseRange
from ckpt_transport_vllm.quantization import check_quantization
from ckpt_transport_vllm.updated_model import UpdatedModel

RELEASES = ReleaseRange("vLLM", first=(0, 25), last=(0, 33))
"""The minor releases that are supported; see the table in docs/reference/vllm-versions.md."""


def check_supported(find_target: Callable[[], UpdatedModel]) -> None:
    """Refuse a model that cannot be updated. It is looked for in a supported version of vLLM only.

    Raises:
        ConfigError: this version of vLLM is not supported, or how the model is quantized, or its layout over ranks.
    """
    RELEASES.check(installed_version())
    target = find_target()
    check_parallel(target.vllm_config.parallel_config)
    check_quantization(target)


def check_parallel(parallel_config: Any) -> None:
    """Refuse engines whose layout over ranks cannot be updated.

    Raises:
        ConfigError: experts move between ranks while the engine runs, so weights would land on the wrong ones.
    """
    if getattr(parallel_config, "enable_eplb", False):
        raise ConfigError(
            "an engine with expert load balancing (--enable-eplb) cannot be updated: experts have moved, and new "
            "weights would land on the wrong ones; start it without"
        )


def check_draft(speculative_config: Any) -> None:
    """Refuse draft models that hold more than their own weights.

    Raises:
        ConfigError: the head is a quantized copy of the served model's, which is made when the engine starts.
    """
    if getattr(speculative_config, "draft_lm_head_quantization", None) is not None:
        raise ConfigError(
            "a draft model with draft_lm_head_quantization cannot be updated: its head is a quantized copy of the "
            "served model's, and would stay as it is; start the engine without"
        )


def installed_version() -> str:
    """The version of vLLM in this process."""
    import vllm

    version = str(vllm.__version__)
    return version if version[:1].isdigit() else importlib.metadata.version("vllm")
