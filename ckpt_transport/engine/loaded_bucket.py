"""What an engine is given of a version: pieces of tensors, a bucket at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import torch

from ckpt_transport import dtypes
from ckpt_transport.memory import Along, MemoryRun, PartialCopy, Runs, part_of
from ckpt_transport.planning import PlacedBytes, TensorSpec


@dataclass(frozen=True, slots=True)
class LoadedPiece:
    """Holds bytes of one tensor on their way into the engine.

    Attributes:
        spec: the tensor they belong to.
        offset: where they start in it, in bytes.
        raw: uint8, one-dimensional; read-only, and valid until :meth:`Engine.load` returns and its fence has ended.
        stable: ``raw`` stays valid longer, until :meth:`Engine.finish` returns: it is the source's own memory.
    """

    spec: TensorSpec
    offset: int
    raw: torch.Tensor
    stable: bool = False

    @property
    def whole(self) -> bool:
        return self.raw.numel() == self.spec.nbytes

    def tensor(self) -> torch.Tensor:
        """The tensor itself, when the piece is the whole of it: its own dtype and shape, without a copy."""
        assert self.whole, f"only bytes {self.offset} to {self.offset + self.raw.numel()} of {self.spec.name} are here"
        return dtypes.as_tensor(self.raw, self.spec.dtype, self.spec.shape)


class LoadedBucket(Sequence[LoadedPiece]):
    """A loaded bucket is a sequence of pieces, which are made when they are looked at.

    Args:
        key: what identifies this bucket: equal keys mean equal pieces at equal places in equal runs, for versions of
            one plan.
        memory: the bytes of the bucket, read-only; valid as those of its pieces. One tensor, uint8, one-dimensional,
            or runs, each of which holds whole pieces.
        places: for each piece, or for many at equal distances in a tensor, where it lies in this and in the bucket.
        stable: see :attr:`LoadedPiece.stable`.
        on_brought: called with what :meth:`brought` is given.

    Attributes:
        along: where there is one, to be called by a thread just before it reads bytes of the bucket, with where these
            end in it: the thread computes a digest of them, and finds them in a cache then.
    """

    def __init__(
        self,
        key: object,
        memory: torch.Tensor | Runs,
        places: Callable[[], Sequence[PlacedBytes]],
        stable: bool = False,
        on_brought: Callable[[Runs, PartialCopy | None], None] = lambda runs, part: None,
    ) -> None:
        self.key, self.stable = key, stable
        self.along: Along | None = None
        self.runs = (MemoryRun(0, memory),) if isinstance(memory, torch.Tensor) else memory
        self._places, self._on_brought = places, on_brought
        self._pieces: list[LoadedPiece] | None = None

    @property
    def raw(self) -> torch.Tensor:
        """The bytes of a bucket that lies in one run."""
        (run,) = self.runs
        return run.raw

    def places(self) -> Sequence[PlacedBytes]:
        """Where pieces lie in their tensors, and in the bucket. Pieces that are columns of a matrix are one place."""
        return self._places()

    def bytes_of(self, place: PlacedBytes) -> torch.Tensor:
        """The bytes of one of :meth:`places`: uint8, one-dimensional; read-only, and valid as those of a piece."""
        return part_of(self.runs, place.at, place.total)

    def brought(self, runs: Runs, part: PartialCopy | None = None) -> LoadedBucket:
        """The same pieces in other memory, which holds the same bytes until the next bucket is brought.

        Where that is a device's, it holds them in the order of its current stream.

        Args:
            runs: that memory.
            part: what of the bucket it holds; None for all of it.
        """
        self._on_brought(runs, part)
        return self if runs is self.runs else LoadedBucket(self.key, runs, self._places)

    def _made(self) -> list[LoadedPiece]:
        if self._pieces is None:
            self._pieces = [
                LoadedPiece(each.spec, each.start, part_of(self.runs, each.at, each.nbytes), self.stable)
                for place in self._places()
                for each in place.each()
            ]
        return self._pieces

    def __len__(self) -> int:
        return len(self._made())

    @overload
    def __getitem__(self, index: int) -> LoadedPiece: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LoadedPiece]: ...
    def __getitem__(self, index: int | slice) -> LoadedPiece | Sequence[LoadedPiece]:
        return self._made()[index]
