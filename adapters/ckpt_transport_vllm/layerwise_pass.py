"""Brings one version in through the model's own loader."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch

from ckpt_transport import LoadedPiece
from ckpt_transport.spi import LoadPass, TensorSpec, by_loader_in_words, layer_of
from ckpt_transport_vllm.layerwise import LayerwiseReload
from ckpt_transport_vllm.tensor_assembler import TensorAssembler


class LayerwisePass(LoadPass):
    """Gives the loader whole tensors, in memory that lasts until it has all of a layer.

    Args:
        reload: what the loader loads into.
        coming: the tensors that it will be given; None when that is not known, so that all parameters are checked.
        refusal: why the loader has to load.
    """

    def __init__(self, reload: LayerwiseReload, coming: Sequence[TensorSpec] | None, refusal: str = "") -> None:
        self._reload, self._refusal = reload, refusal
        self._checks = coming is None
        self._missing = Counter(layer_of(spec.name) for spec in coming or ())
        self._assembler = TensorAssembler()
        self._copies: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
        self._seconds = 0.0

    def begin(self) -> None:
        self._reload.begin()

    def load(self, bucket: Sequence[LoadedPiece]) -> None:
        began = time.perf_counter()
        lent = {piece.spec.name for piece in bucket if piece.stable and piece.whole}
        tensors = {piece.spec.name: _stable_tensor(piece) for piece in self._assembler.whole(bucket)}
        for name in tensors.keys() - lent:
            self._copies[layer_of(name)].append(tensors[name])
        if tensors:
            self._reload.load(tensors.items())
        for name in tensors:
            layer = layer_of(name)
            self._missing[layer] -= 1
            if not self._missing[layer] and layer in self._copies:
                self._reload.settle(self._copies.pop(layer))
        self._seconds += time.perf_counter() - began

    def finish(self) -> str:
        """See :meth:`LoadPass.finish`.

        Raises:
            PlanMismatchError: a parameter was not loaded, or only in part, where it was not known what comes.
        """
        began = time.perf_counter()
        if self._checks:
            self._reload.check_complete()
        self._reload.finish()
        self._copies.clear()
        return by_loader_in_words(self._seconds + time.perf_counter() - began, self._refusal)

    def restore(self) -> None:
        self._copies.clear()
        self._assembler.clear()
        self._reload.restore()


def _stable_tensor(piece: LoadedPiece) -> torch.Tensor:
    """The tensor, in memory that outlives the piece."""
    return piece.tensor() if piece.stable else piece.tensor().clone()
