"""Carriers of tensors that modules of an engine take whole are loaded beside what is served, as pieces of tensors."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch

from ckpt_transport.engine import LoadedBucket
from ckpt_transport.errors import DeltaRefusedError
from ckpt_transport.memory import MemoryRun
from ckpt_transport.planning import Carrier, Delta, DeltaForm, PlacedBytes, PlacedTensor, TensorSpec, run_by_run

ALIGNMENT = 64


class _Piece(NamedTuple):
    """Bytes of a tensor that a carrier brings.

    Attributes:
        start, nbytes: which bytes of the tensor.
        carrier: the name of the carrier.
        at: where they begin in it.
    """

    start: int
    nbytes: int
    carrier: str
    at: int

    def part(self, start: int, end: int) -> _Piece:
        """Those between two bytes of the tensor."""
        return _Piece(start, end - start, self.carrier, self.at + start - self.start)


@dataclass(frozen=True)
class WholeTensors:
    """What of a delta is loaded whole.

    Attributes:
        pieces: all bytes of these tensors, each once.
        again: the same bytes from other sources.
        only: names of carriers that bring nothing else.
    """

    pieces: Sequence[tuple[TensorSpec, _Piece]] = ()
    again: Sequence[tuple[TensorSpec, _Piece]] = ()
    only: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        deltas: Sequence[Delta],
        mine: Collection[str],
        wanted: Collection[TensorSpec],
        followed: Collection[str],
    ) -> WholeTensors:
        """
        Args:
            deltas: of all sources.
            mine: names of the carriers that come.
            wanted: what is taken whole.
            followed: names of tensors of which elements can be exchanged; some may be taken whole besides.

        Raises:
            DeltaRefusedError: not all bytes of a tensor come; names it.
        """
        if not wanted:
            return cls()
        names = {spec.name for spec in wanted}
        found: defaultdict[str, list[_Piece]] = defaultdict(list)
        only: set[str] = set()
        for delta in deltas:
            for carrier, tensors in _brought(delta, mine):
                if not any(tensor.spec.name in followed for tensor in tensors):
                    only.add(carrier.name)
                for tensor in tensors:
                    if tensor.spec.name in names and carrier.form is DeltaForm.WHOLE:
                        found[tensor.spec.name].append(_piece_of(tensor, carrier))
        pieces: list[tuple[TensorSpec, _Piece]] = []
        again: list[tuple[TensorSpec, _Piece]] = []
        for spec in wanted:
            once, others = _once(spec, found[spec.name])
            pieces += ((spec, piece) for piece in once)
            again += ((spec, piece) for piece in others)
        return cls(pieces, again, frozenset(only))

    def bucket(self, raw: Mapping[str, torch.Tensor]) -> LoadedBucket:
        """All pieces, where they are. They stay there until they have been loaded.

        Args:
            raw: the bytes of each carrier, by name.

        Raises:
            DeltaRefusedError: two sources bring different values of one byte.
        """
        self._check_again(raw)
        names = list(dict.fromkeys(piece.carrier for _, piece in self.pieces))
        sizes = [-(-raw[name].numel() // ALIGNMENT) * ALIGNMENT for name in names]
        starts = dict(zip(names, accumulate(sizes, initial=0), strict=False))
        places = tuple(
            PlacedBytes(spec, piece.start, starts[piece.carrier] + piece.at, piece.nbytes)
            for spec, piece in self.pieces
        )
        runs = tuple(MemoryRun(starts[name], raw[name]) for name in names)
        return LoadedBucket(("taken whole", places), runs, lambda: places, stable=True)

    def _check_again(self, raw: Mapping[str, torch.Tensor]) -> None:
        known: dict[str, torch.Tensor] = {}
        for spec, piece in self.again:
            if spec.name not in known:
                mine = [one for other, one in self.pieces if other == spec]
                known[spec.name] = torch.cat([_bytes(one, raw) for one in mine])
            if not torch.equal(known[spec.name][piece.start : piece.start + piece.nbytes], _bytes(piece, raw)):
                raise DeltaRefusedError(f"two sources bring different values of {spec.name}")


def _bytes(piece: _Piece, raw: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return raw[piece.carrier][piece.at : piece.at + piece.nbytes]


def _brought(delta: Delta, mine: Collection[str]) -> Iterator[tuple[Carrier, list[PlacedTensor]]]:
    """Carriers that come, each with the tensors that lie in its range."""
    tensors = sorted(
        filter(lambda each: each.nbytes, run_by_run(delta.tensors)), key=lambda each: (each.extent, each.offset)
    )
    places = [(each.extent, each.offset) for each in tensors]
    ends = list(accumulate(((each.extent, each.offset + each.nbytes) for each in tensors), max))
    for carrier in delta.carriers:
        if carrier.name in mine and carrier.nbytes:
            low = bisect_right(ends, (carrier.extent, carrier.offset))
            high = bisect_right(places, (carrier.extent, carrier.offset + carrier.nbytes - 1))
            within = [each for each in tensors[low:high] if each.offset + each.nbytes > carrier.offset]
            yield carrier, within


def _piece_of(tensor: PlacedTensor, carrier: Carrier) -> _Piece:
    low = max(tensor.offset, carrier.offset)
    high = min(tensor.offset + tensor.nbytes, carrier.offset + carrier.nbytes)
    return _Piece(tensor.start + low - tensor.offset, high - low, carrier.name, low - carrier.offset)


def _once(spec: TensorSpec, pieces: Sequence[_Piece]) -> tuple[list[_Piece], list[_Piece]]:
    """Pieces of a tensor that have each byte once, ascending, and what comes again.

    Raises:
        DeltaRefusedError: they have not all bytes.
    """
    once: list[_Piece] = []
    again: list[_Piece] = []
    end = 0
    for piece in sorted(pieces):
        stop = piece.start + piece.nbytes
        if piece.start > end:
            break
        if piece.start < end:
            again.append(piece.part(piece.start, min(end, stop)))
        if stop > end:
            once.append(piece.part(end, stop))
            end = stop
    if end < spec.nbytes:
        raise DeltaRefusedError(f"{spec.name} comes in part, and the engine takes it whole")
    return once, again
