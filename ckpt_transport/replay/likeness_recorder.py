"""Records a loader on a likeness of a model, while forward passes go through the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ckpt_transport.replay.fake_tensors import FakeTensors
from ckpt_transport.replay.memory_map import Targets, storage_key
from ckpt_transport.replay.recorder import Recorder, tensors_in
from ckpt_transport.replay.serving_recorder import SeenByPassesError


class LikenessRecorder(Recorder):  # type: ignore[no-untyped-call]
    """A recorder that stops the loader, by :class:`SeenByPassesError`, before it writes to
    memory that was there before.

    Of the likeness nothing is written, as no recorder writes to targets. What else the loader finds may be the model's.
    """

    def __init__(self, fake_tensors: FakeTensors, targets: Targets) -> None:
        super().__init__(fake_tensors, targets)
        self._made: dict[int, torch.Tensor] = {}
        """What the loader has made of nothing known, by its memory, which is kept so that no other gets its key."""

    def _see(self, func: Any, args: Any, kwargs: Any) -> Any:
        for tensor in _may_be_written(func, args, kwargs):
            if self.memory.owner(tensor) is None and storage_key(tensor) not in self._made:
                raise SeenByPassesError(f"calls {func} on memory that may be the model's")
        there = {storage_key(tensor) for tensor in tensors_in(args, kwargs)}
        result = super()._see(func, args, kwargs)
        for tensor in tensors_in((result,), {}):
            if storage_key(tensor) not in there and self.memory.owner(tensor) is None:
                self._made[storage_key(tensor)] = tensor
        return result


def _may_be_written(func: Any, args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
    """Tensors that an operation may write; of one that is not torch's own, whatever it is given."""
    if func.namespace not in ("aten", "prims", "prim"):
        yield from tensors_in(args, kwargs)
    elif func._schema.is_mutable:
        named = dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            if argument.name in named and argument.alias_info is not None and argument.alias_info.is_write:
                yield from tensors_in([named[argument.name]], {})
