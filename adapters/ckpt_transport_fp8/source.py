"""Makes a version of weights that become FP8 on their way: its buckets are computed when they are filled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ckpt_transport import StoredVersion
from ckpt_transport.spi import Loan, Watched, check_readable, given_tensors
from ckpt_transport_fp8.recipe import recipe_for
from ckpt_transport_fp8.target import Target, read_target


def quantized(
    weights: Mapping[str, torch.Tensor] | StoredVersion, target: Target, device: torch.device | None = None
) -> Loan:
    """Return ``weights`` as ``target`` wants them; give that to :meth:`ckpt_transport.ParameterServer.lend`.

    Scales are computed here: one pass over the weights, before an engine stands still for them. Elements are computed
    bucket by bucket while the update runs, so nobody may change ``weights`` until the version is unregistered: an
    update that sees it fails.

    What names, shapes and types decide is worked out once and kept with ``target``: for the next version, give the same
    one.

    Args:
        weights: this rank's tensors, contiguous, or a version that it has registered.
        target: what they are made for.
        device: where elements are computed; by default where the weights are, if that is a GPU, else on the current
            GPU, if this process has one, else on the CPU.

    Raises:
        PlanMismatchError: the target wants something else than these weights can become; names the tensor.
        CheckpointError: a tensor that is to be quantized holds NaN or infinity, is not contiguous, or is no plain
            tensor, as a DTensor; names it.
    """
    tensors = weights.tensors() if isinstance(weights, StoredVersion) else given_tensors(weights)
    if not tensors and isinstance(weights, StoredVersion):
        return Loan(None, ())
    recipe = recipe_for(tensors, target, device)
    check_readable(tensors)
    watched = Watched(tensors)
    for gpu in recipe.gpus:
        torch.cuda.current_stream(gpu).synchronize()
    return recipe.loan(list(tensors.values()), watched)


def quantized_for(stored: StoredVersion, target: Path) -> Loan:
    """Return :func:`quantized` of a version for a target that is read from ``target``; for the commands."""
    return quantized(stored, read_target(target))
