"""Loads new weights into a model of transformers, whichever way it is served."""

from __future__ import annotations

from typing import Any

from ckpt_transport_torch import TorchEngine
from ckpt_transport_transformers.batching import Batching, Halts
from ckpt_transport_transformers.refusals import refuse_merged, refuse_quantized
from ckpt_transport_transformers.tuners import model_inside


class TransformersEngine(TorchEngine):
    """Holds the model between two forward passes, and continuous batching between two batches.

    Args:
        model: what is updated; a ``PeftModel`` by the names that it has itself.
        label: see :class:`~ckpt_transport.Engine`.

    Raises:
        UnwritableError: the model is quantized, an adapter of it is merged, or a tensor cannot be written; names it,
            and the cure.
    """

    def __init__(self, model: Any, label: str = "") -> None:
        self._model, self._stands_still = model_inside(model), False
        super().__init__(model, "", label)
        self._batching, self._halts = Batching(self._model), Halts()

    def begin(self) -> None:
        refuse_quantized(self._model)
        refuse_merged(self._module)
        super().begin()

    def confirm(self) -> None:
        refuse_merged(self._module)
        super().confirm()

    def hold(self) -> int:
        """Ask loops of continuous batching to halt. The gate is closed when they have, since a batch passes it."""
        self._halts.ask(self._batching.managers)
        return self.gate.started

    def advance(self, forwards: int, timeout: float) -> None:
        self._halts.wait(timeout)
        super().advance(self.gate.hold(), timeout)
        self._stands_still = True

    def certify(self) -> None:
        super().certify()
        if self._stands_still:
            self._batching.forget_prefixes()

    def resume(self) -> float:
        held = super().resume()
        self._go_on()
        return held

    def taint(self, reason: str) -> None:
        super().taint(reason)
        self._go_on()

    def give_up(self, taint: str) -> None:
        super().give_up(taint)
        self._go_on()

    def _go_on(self) -> None:
        self._stands_still = False
        self._halts.end()

    def detach(self) -> None:
        self._batching.detach()
