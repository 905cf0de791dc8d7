"""Puts tensors together that come in pieces, for loaders that take them whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from ckpt_transport.engine import LoadedPiece


class TensorAssembler:
    """Puts together what is larger than a bucket, in memory of its own on the device that the pieces are on."""

    def __init__(self) -> None:
        self._partial: dict[str, torch.Tensor] = {}
        self._missing: dict[str, int] = {}

    def whole(self, pieces: Iterable[LoadedPiece]) -> Iterator[LoadedPiece]:
        """The pieces that are whole, and those that others make whole with what came before; these last."""
        for piece in pieces:
            if piece.whole:
                yield piece
            elif (raw := self._add(piece)) is not None:
                yield LoadedPiece(piece.spec, 0, raw, stable=True)

    def clear(self) -> None:
        """Forget what is not whole."""
        self._partial.clear()

    def _add(self, piece: LoadedPiece) -> torch.Tensor | None:
        name, nbytes = piece.spec.name, piece.raw.numel()
        if name not in self._partial:
            self._partial[name] = torch.empty(piece.spec.nbytes, dtype=torch.uint8, device=piece.raw.device)
            self._missing[name] = piece.spec.nbytes
        self._partial[name][piece.offset : piece.offset + nbytes].copy_(piece.raw, non_blocking=True)
        self._missing[name] -= nbytes
        return None if self._missing[name] else self._partial.pop(name)
