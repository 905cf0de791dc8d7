"""Makes a model of transformers updatable."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ckpt_transport import Config, ConfigError
from ckpt_transport_torch import Attachment, ModuleEngine, attach_engine
from ckpt_transport_transformers.engine import TransformersEngine
from ckpt_transport_transformers.sharded_engine import ShardedEngine, is_sharded
from ckpt_transport_transformers.tuners import model_inside


def attach(
    model: Any,
    address: str = "",
    *,
    engine: str = "",
    version: str = "",
    label: str = "",
    config: Config | None = None,
    warm: Path | Mapping[str, torch.Tensor] | None = None,
) -> Attachment:
    """Make ``model`` updatable while it serves by ``generate``, by continuous batching, or in ``transformers serve``.

    Updates are applied between two forward passes. Loops of continuous batching halt between two batches: no request
    is lost, and those under way go on with the new weights and the keys and values that they have. Later requests
    share no prefix with earlier ones.

    Args:
        model: of that library, or a ``PeftModel`` of one. Names, dtypes and shapes of a version are those of its
            ``state_dict``; see :class:`~ckpt_transport.Mapping` for checkpoints that have others. Managers of
            continuous batching are known that it makes from now on. Of a tensor-parallel model (``tp_plan``) every rank
            attaches its own, before it serves; a version has whole tensors, of which each rank takes its part.
        engine: ranks of one tensor-parallel model give the same name, and are updated before the same forward pass.
        address, version, label, config, warm: as those of :func:`ckpt_transport_torch.attach`.

    Raises:
        ConfigError: ``engine`` is missing for a tensor-parallel model, or given for another one.
        UnwritableError: the model is quantized, an adapter of it is merged, or a tensor of it cannot be written in
            place; names it, and the cure.
        CheckpointError, ConfigError, ControlError: as :func:`ckpt_transport_torch.attach`.
    """
    config = Config.given(config)
    is_parallel = is_sharded(model)
    if is_parallel != bool(engine):
        raise ConfigError(
            f"{type(model).__name__} is {'' if is_parallel else 'not '}cut among ranks of tensor parallelism: give "
            + ("all of them the same name by attach(..., engine='...')" if is_parallel else "no engine")
        )

    def make(named: str) -> ModuleEngine:
        if is_parallel:
            return ShardedEngine(model, engine, named, verify_always=config.verify_apply == "always")
        return TransformersEngine(model, named)

    return attach_engine(
        model_inside(model),
        make,
        address,
        version=version,
        label=label or f"{type(model).__name__} in process {os.getpid()}",
        config=config,
        warm=warm,
    )
