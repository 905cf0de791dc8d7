"""Loads new weights into one rank of a tensor-parallel model of transformers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from ckpt_transport import UnwritableError
from ckpt_transport.spi import Share, TensorSpec, dtypes, is_dtensor
from ckpt_transport_torch import LoaderEngine
from ckpt_transport_transformers.batching import Batching
from ckpt_transport_transformers.local_parts import LocalParts
from ckpt_transport_transformers.refusals import refuse_merged, refuse_quantized
from ckpt_transport_transformers.tuners import model_inside


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether parameters of the model are DTensors."""
    return any(map(is_dtensor, model.parameters()))


class ShardedEngine(LoaderEngine):
    """Takes whole tensors, and puts this rank's part of each into the memory of its DTensor.

    Ranks of one model are held before the same forward pass. Continuous batching is refused, whose loops are not.

    Args:
        model: this rank's.
        group: names the model; all of its ranks say the same.
        label, verify_always: see :class:`~ckpt_transport_torch.LoaderEngine`.

    Raises:
        UnwritableError: the model is quantized, an adapter of it is merged, or batches run; names it, and the cure.
        CheckpointError: ranks have summands of a tensor; names it.
    """

    def __init__(self, model: Any, group: str, label: str = "", *, verify_always: bool = False) -> None:
        self._served_model, self._model = model, model_inside(model)
        self._parts, self._batching = LocalParts(model), Batching(self._model)
        super().__init__(self._parts, self._parts.load, group, label, verify_always=verify_always)

    def begin(self) -> None:
        self._refuse()
        self._parts.look_up()
        super().begin()

    def confirm(self) -> None:
        self._refuse()
        super().confirm()

    def expects(self) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name, dtypes.name_of(part.tensor.dtype), part.shape) for name, part in self._parts.parts.items()
        )

    def ties(self) -> tuple[frozenset[str], ...]:
        sharing: defaultdict[tuple[object, ...], set[str]] = defaultdict(set)
        for name, part in self._parts.parts.items():
            if part.tensor.numel():
                sharing[part.tensor.data_ptr(), part.shape, part.tensor.stride()].add(name)
        return tuple(frozenset(names) for names in sharing.values() if len(names) > 1)

    def prepare(self, specs: Sequence[TensorSpec], share: Share | None) -> None:
        self._parts.choose({spec.name for spec in specs}, self.ties())
        super().prepare(specs, share)

    def detach(self) -> None:
        self._batching.detach()

    def _refuse(self) -> None:
        refuse_quantized(self._model)
        refuse_merged(self._served_model)
        if any(manager.is_running() for manager in self._batching.managers):
            raise UnwritableError(
                f"{self.label} cannot be updated while continuous batching runs on ranks of tensor parallelism, whose "
                "loops would not halt before the same batch: stop the manager, or serve by generate"
            )
