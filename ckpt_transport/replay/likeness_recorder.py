"""Records a loader on a likeness of a model, while forward passes go through the model itself."""

from __future__ import annotations

from typing import Any

import torch

from ckpt_transport.replay.fake_tensors import FakeTensors
from ckpt_transport.replay.memory_map import Targets
from ckpt_transport.replay.recorder import Recorder, tensors_in
from ckpt_transport.replay.writable_memory import WritableMemory


class LikenessRecorder(Recorder):  # type: ignore[no-untyped-call]
    """A recorder that stops the loader, by :class:`~ckpt_transport.spi.SeenByPassesError`, before it writes to
    memory that was there before.

    Of the likeness nothing is written, as no recorder writes to targets. What else the loader finds may be the model's.
    """

    def __init__(self, fake_tensors: FakeTensors, targets: Targets) -> None:
        super().__init__(fake_tensors, targets)
        self._writable = WritableMemory()

    def _see(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._writable.check(func, args, kwargs, self._is_known)
        result = super()._see(func, args, kwargs)
        self._writable.add_made(args, kwargs, [each for each in tensors_in((result,), {}) if not self._is_known(each)])
        return result

    def _is_known(self, tensor: torch.Tensor) -> bool:
        """Whether the recorder notes what is written to it."""
        return self.memory.owner(tensor) is not None
