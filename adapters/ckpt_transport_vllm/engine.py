"""The way into one vLLM worker."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

from ckpt_transport import Engine, LoadedPiece
from ckpt_transport.memory import Fence, fence
from ckpt_transport.planning import TensorSpec
from ckpt_transport.planning.modules import layer_of
from ckpt_transport_vllm.cores import all_cores
from ckpt_transport_vllm.layerwise import LayerwiseReload
from ckpt_transport_vllm.quantization import check_tensors
from ckpt_transport_vllm.quiesce import Quiesce
from ckpt_transport_vllm.target import Target

logger = logging.getLogger(__name__)


class VllmEngine(Engine):
    """Loads through the model's own loader and vLLM's layerwise reload.

    Args:
        find_target: the model that the next update goes into.
        quiesce: holds forward passes.
        reset: called after an update, for state in the worker that depends on weights.
        group, label: see :class:`~ckpt_transport.Engine`.
    """

    whole_tensors = True
    keeps_tensors = True

    def __init__(
        self,
        find_target: Callable[[], Target],
        quiesce: Quiesce,
        reset: Callable[[], None],
        group: str,
        label: str,
    ) -> None:
        self.group, self.label = group, label
        self._find_target, self._quiesce, self._reset = find_target, quiesce, reset
        self._reload: LayerwiseReload | None = None
        self._cores = ExitStack()
        self._known: dict[str, tuple[TensorSpec, ...]] = {}
        self._knows = False
        self._missing: Counter[str] = Counter()
        self._copies: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
        self.device = next(find_target().model.parameters()).device
        self.expects()

    def expects(self) -> tuple[TensorSpec, ...] | None:
        """The tensors of the checkpoint that the model came from. Once read, its files are not needed any more."""
        target = self._find_target()
        name = str(target.model_config.model)
        expected = self._known.get(name) or target.expects()
        if expected is not None:
            self._known[name] = expected
        return expected

    def check(self, tensors: Sequence[TensorSpec]) -> None:
        check_tensors(self._find_target(), tensors, self.expects(), self.label)

    def hold(self) -> int:
        return self._quiesce.hold()

    def advance(self, forwards: int, timeout: float) -> None:
        self._quiesce.advance(forwards, timeout)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def load(self, pieces: Sequence[LoadedPiece]) -> Fence | None:
        reload = self._reload or self._begin()
        reload.load([(piece.spec.name, self._lasting(piece)) for piece in pieces])
        for piece in pieces:
            layer = layer_of(piece.spec.name)
            self._missing[layer] -= 1
            if not self._missing[layer] and layer in self._copies:
                reload.settle(self._copies.pop(layer))
        return fence(self.device)

    def finish(self) -> None:
        if self._reload is None:
            return
        self._reload.finish(complete=not self._knows)
        self._reload = None
        self._copies.clear()
        self._cores.close()
        self._reset()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def resume(self) -> float:
        return self._quiesce.resume()

    def taint(self, reason: str) -> None:
        """Put the model into a state that a later update can start from; its weights are a mix."""
        logger.error("%s must not serve: %s", self.label, reason)
        self._copies.clear()
        if self._reload is not None:
            reload, self._reload = self._reload, None
            reload.restore()
        self._cores.close()
        self._quiesce.taint(reason)

    def _begin(self) -> LayerwiseReload:
        target = self._find_target()
        device = next(target.model.parameters()).device
        if device.type != "cpu":
            torch.accelerator.set_device_index(device)
        expected = self.expects()
        self._knows = expected is not None
        self._missing = Counter(layer_of(spec.name) for spec in expected or ())
        self._cores.enter_context(all_cores(target.vllm_config))
        self._reload = LayerwiseReload(target)
        self._reload.begin()
        return self._reload

    def _lasting(self, piece: LoadedPiece) -> torch.Tensor:
        """The tensor, in memory that outlives the piece."""
        if piece.lasting:
            return piece.tensor()
        copy = piece.tensor().clone()
        self._copies[layer_of(piece.spec.name)].append(copy)
        return copy
