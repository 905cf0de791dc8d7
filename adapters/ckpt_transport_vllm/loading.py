"""One update through the model's own loader."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch

from ckpt_transport import LoadedPiece
from ckpt_transport.planning import TensorSpec
from ckpt_transport.planning.modules import layer_of
from ckpt_transport_vllm.gathering import Gathering
from ckpt_transport_vllm.layerwise import LayerwiseReload


class Loading:
    """Gives the loader whole tensors, in memory that lasts until it has all of a layer.

    Args:
        reload: begun.
        coming: the tensors that it will be given, as far as that is known.
    """

    def __init__(self, reload: LayerwiseReload, coming: Iterable[TensorSpec]) -> None:
        self._reload = reload
        self._missing = Counter(layer_of(spec.name) for spec in coming)
        self._gathering = Gathering()
        self._copies: defaultdict[str, list[torch.Tensor]] = defaultdict(list)

    def load(self, pieces: Sequence[LoadedPiece]) -> None:
        lent = {piece.spec.name for piece in pieces if piece.lasting and piece.whole}
        tensors = {piece.spec.name: _lasting(piece) for piece in self._gathering.whole(pieces)}
        for name in tensors.keys() - lent:
            self._copies[layer_of(name)].append(tensors[name])
        if tensors:
            self._reload.load(tensors.items())
        for name in tensors:
            layer = layer_of(name)
            self._missing[layer] -= 1
            if not self._missing[layer] and layer in self._copies:
                self._reload.settle(self._copies.pop(layer))

    def finish(self, *, complete: bool) -> None:
        """See :meth:`LayerwiseReload.finish`."""
        self._reload.finish(complete=complete)
        self._copies.clear()

    def restore(self) -> None:
        """See :meth:`LayerwiseReload.restore`."""
        self._copies.clear()
        self._gathering.clear()
        self._reload.restore()


def _lasting(piece: LoadedPiece) -> torch.Tensor:
    """The tensor, in memory that outlives the piece."""
    return piece.tensor() if piece.lasting else piece.tensor().clone()
