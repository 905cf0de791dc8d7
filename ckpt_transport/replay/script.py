"""What is to be done with one bucket, made ready once and run for every version."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ckpt_transport import dtypes
from ckpt_transport.engine import LoadedBucket
from ckpt_transport.errors import RecordingError
from ckpt_transport.planning import TensorSpec
from ckpt_transport.replay.layout import Copy, Layout, Place
from ckpt_transport.replay.moves import Move, clip, merge
from ckpt_transport.replay.strided import Strided


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of one tensor in a bucket.

    Attributes:
        source: index into the layout's sources.
        offset: where they start in the tensor, in bytes.
        at: where they start in the bucket, in bytes.
        nbytes: how many there are.
    """

    source: int
    offset: int
    at: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Script:
    """What is to be done with one bucket.

    Attributes:
        moves: straight from the bucket to targets.
        gathered: parts that must wait for the rest of what they are needed with.
        loaded: parts of tensors that only the loader itself can load.
        copied: bytes that ``moves`` write, by target.
        targets: all that is written once the bucket is in, and with it what ``gathered`` waits for.
        ready: the moves as torch does them, by the alignment of memory; made when first needed.
    """

    moves: tuple[Move, ...]
    gathered: tuple[Part, ...]
    loaded: tuple[Part, ...]
    copied: Mapping[int, int]
    targets: frozenset[int]
    ready: dict[int, Sequence[Strided]] = field(default_factory=dict, compare=False)


class UnknownTensorError(RecordingError):
    """A bucket brings a tensor that the layout does not know."""


class Scripts:
    """The scripts of one layout: each is made when its bucket comes for the first time."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._index: Mapping[str, tuple[int, TensorSpec]] = {
            spec.name: (number, spec) for number, spec in enumerate(layout.sources)
        }
        self._copies: defaultdict[int, list[Copy]] = defaultdict(list)
        for copy in layout.copies:
            self._copies[copy.source].append(copy)
        self._together: defaultdict[int, set[int]] = defaultdict(set)
        for program in layout.programs:
            for source in program.sources:
                self._together[source].update(program.targets)
        self._refused = {each.index for each in layout.refused if each.place is Place.SOURCE}
        self._known: dict[object, Script] = {}
        self._used: set[object] = set()

    def of(self, bucket: LoadedBucket) -> Script:
        """The script for this bucket, and for all of the same key.

        Raises:
            UnknownTensorError: it brings a tensor that the layout does not know; names it.
        """
        self._used.add(bucket.key)
        script = self._known.get(bucket.key)
        if script is None:
            parts: list[Part] = []
            for place in bucket.places():
                part = self.part(*place)
                if part is None:
                    raise UnknownTensorError(f"{place[0]} comes, which the version was not said to have")
                parts.append(part)
            script = self._known[bucket.key] = self.make(parts)
        return script

    def forget_unused(self) -> None:
        """Drop the scripts of buckets that have not come since this was called before."""
        for key in self._known.keys() - self._used:
            del self._known[key]
        self._used.clear()

    @property
    def moves(self) -> int:
        """How many strided copies all buckets take together."""
        return sum(len(script.moves) for script in self._known.values())

    def part(self, spec: TensorSpec, offset: int, at: int, nbytes: int) -> Part | None:
        """A piece of a tensor as this layout knows it; None when it does not."""
        number, known = self._index.get(spec.name, (-1, None))
        return Part(number, offset, at, nbytes) if known == spec else None

    def copies_of(self, source: int) -> Sequence[Copy]:
        """All that is copied of one tensor."""
        return self._copies[source]

    def make(self, parts: Iterable[Part]) -> Script:
        """The script for a bucket that holds ``parts``."""
        moves: list[Move] = []
        gathered: list[Part] = []
        loaded: list[Part] = []
        for part in parts:
            if part.source in self._refused:
                loaded.append(part)
            elif part.source in self._together or self._cuts_an_element(part):
                gathered.append(part)
            else:
                moves += self._moves(part)
        merged = tuple(merge(moves))
        copied: Counter[int] = Counter()
        for move in merged:
            copied[move.target] += move.nbytes
        targets = set(copied)
        for part in gathered:
            targets.update(copy.target for copy in self._copies[part.source])
            targets |= self._together[part.source]
        return Script(merged, tuple(gathered), tuple(loaded), dict(copied), frozenset(targets))

    def _moves(self, part: Part) -> list[Move]:
        moves = [_move(copy, part.at - part.offset) for copy in self._copies[part.source]]
        if part.nbytes == self.layout.sources[part.source].nbytes:
            return moves
        return [piece for move in moves for piece in clip(move, part.at, part.at + part.nbytes)]

    def _cuts_an_element(self, part: Part) -> bool:
        """Whether the part begins or ends within an element. Then all parts of that tensor do: see ``bucketing``."""
        size = max((dtypes.TORCH[copy.read.dtype].itemsize for copy in self._copies[part.source]), default=1)
        return part.nbytes != self.layout.sources[part.source].nbytes and bool(
            part.offset % size or (part.offset + part.nbytes) % size
        )


def _move(copy: Copy, at: int) -> Move:
    read, write = copy.read, copy.write
    return Move(
        copy.target,
        copy.shape,
        at + read.offset,
        write.offset,
        read.strides,
        write.strides,
        read.dtype,
        write.dtype,
    )
