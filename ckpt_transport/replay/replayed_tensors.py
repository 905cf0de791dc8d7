"""Modules that take their tensors whole are loaded by a replay, beside what is served of them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ckpt_transport.engine import LoadedBucket, StagedTensors
from ckpt_transport.replay.loading import LoadPass


class ReplayedTensors(StagedTensors):
    """Modules that a pass loads, and that are exchanged with those that are served.

    Args:
        load: begins a pass that loads them.
        nbytes: bytes of memory that they take.
        exchange: see :meth:`~ckpt_transport.engine.StagedTensors.exchange`.
        device: where they are.
    """

    def __init__(self, load: LoadPass, nbytes: int, exchange: Callable[[], None], device: torch.device) -> None:
        self.nbytes = nbytes
        self._exchange, self._device = exchange, device
        self._pass: LoadPass | None = load
        with torch.no_grad():
            load.begin()

    def load(self, pieces: LoadedBucket) -> None:
        assert self._pass is not None, "it has not ended"
        self._pass.load(pieces)

    def finish(self) -> None:
        assert self._pass is not None, "it ends once"
        self._pass.finish()
        self._pass = None
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def exchange(self) -> None:
        self._exchange()
