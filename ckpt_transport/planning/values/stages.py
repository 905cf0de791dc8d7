"""The stages of a plan: what is done to buckets, in which order.

A line of a thousand sinks does with every bucket what it did with the one before. So the stages of one bucket are kept
as a *pattern*, which says what each of them waits for in terms of earlier buckets, and a *block* says which pattern a
bucket follows, and which earlier buckets are meant::

    pattern 3      0  TRANSFER hop 4   after earlier bucket 1: stages 1, 9
                   1  TRANSFER hop 5   after stage 0, and earlier bucket 1: stages 2, 9
                   2  APPLY            after stages 0, 1
    block 70       pattern 3 for bucket 70; earlier bucket 1 is the one 4 blocks before

:class:`Stages` is read like a tuple of :class:`Stage`, and makes these when they are asked for.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from typing import overload

import msgspec


class StageKind(enum.IntEnum):
    """The three stages of the pipeline."""

    FILL = 0
    TRANSFER = 1
    APPLY = 2


class Stage(msgspec.Struct, frozen=True, array_like=True):
    """A stage is one step for one bucket, on all ranks it concerns. Its number is its position in the plan.

    Attributes:
        kind: FILL on the bucket's owner, TRANSFER along one hop, APPLY on every sink of its receiver set.
        bucket: index into the plan's buckets.
        hop: index into the plan's hops, for a transfer; else -1.
        after: numbers of earlier stages. On every rank that takes part in both, the earlier must be terminal first.
    """

    kind: StageKind
    bucket: int
    hop: int
    after: tuple[int, ...]


class PatternStage(msgspec.Struct, frozen=True, array_like=True):
    """A stage of any bucket that follows a pattern.

    Attributes:
        kind, hop: as those of :class:`Stage`.
        after: (which, position) each: 0 and a position in the pattern itself, or ``n`` and one in the pattern of the
            n-th earlier block.
    """

    kind: StageKind
    hop: int
    after: tuple[tuple[int, int], ...]


Pattern = tuple[PatternStage, ...]
"""The stages of one bucket."""
OWN = 0
"""Which block a stage waits for, where it waits for a stage of its own bucket."""


class Block(msgspec.Struct, frozen=True, array_like=True):
    """The stages of one bucket, one behind the other.

    Attributes:
        pattern: index into the patterns.
        bucket: index into the plan's buckets.
        earlier: how many blocks before this one those are that its stages wait for.
    """

    pattern: int
    bucket: int
    earlier: tuple[int, ...] = ()


class Stages(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """All stages of a plan.

    Attributes:
        patterns: each occurs once.
        blocks: in the order in which ranks carry them out.
    """

    patterns: tuple[Pattern, ...] = ()
    blocks: tuple[Block, ...] = ()

    @staticmethod
    def of(stages: Iterable[Stage]) -> Stages:
        """Pack stages that were written out: those of one bucket that are next to each other become a block."""
        runs = [list(run) for _, run in groupby(stages, key=lambda stage: stage.bucket)]
        starts = [0, *accumulate(map(len, runs))]
        patterns: dict[Pattern, int] = {}
        blocks: list[Block] = []
        for number, run in enumerate(runs):
            places = {
                after: (bisect_right(starts, after) - 1 if after >= 0 else -1) for stage in run for after in stage.after
            }
            others = list(dict.fromkeys(place for place in sorted(places.values()) if place != number))
            which = {number: OWN} | {place: n for n, place in enumerate(others, 1)}
            pattern = tuple(
                PatternStage(
                    stage.kind,
                    stage.hop,
                    tuple((which[places[after]], after - starts[max(places[after], 0)]) for after in stage.after),
                )
                for stage in run
            )
            earlier = tuple(number - place for place in others)
            blocks.append(Block(patterns.setdefault(pattern, len(patterns)), run[0].bucket, earlier))
        return Stages(tuple(patterns), tuple(blocks))

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[Stage]:
        for number in range(len(self.blocks)):
            yield from self.block(number)

    @overload
    def __getitem__(self, which: int) -> Stage: ...
    @overload
    def __getitem__(self, which: slice) -> tuple[Stage, ...]: ...
    def __getitem__(self, which: int | slice) -> Stage | tuple[Stage, ...]:
        numbers = range(len(self))[which]
        if isinstance(numbers, range):
            return tuple(map(self._stage, numbers))
        return self._stage(numbers)

    def start(self, block: int) -> int:
        """The number of the first stage of a block."""
        return self._starts[block]

    def pattern(self, block: int) -> Pattern:
        """The pattern that a block follows."""
        return self.patterns[self.blocks[block].pattern]

    def block(self, number: int) -> Iterator[Stage]:
        """The stages of a block."""
        bucket = self.blocks[number].bucket
        for stage in self.pattern(number):
            yield Stage(stage.kind, bucket, stage.hop, self.after(number, stage))

    def after(self, block: int, stage: PatternStage) -> tuple[int, ...]:
        """The numbers of the stages that a stage of that block waits for."""
        starts, earlier = self._starts, self.blocks[block].earlier
        bases = (starts[block], *(self._start_of(block - back) for back in earlier))
        return tuple(bases[which] + position for which, position in stage.after)

    def _start_of(self, block: int) -> int:
        """The number of the first stage of a block; what is outside of the plan has none of its numbers."""
        return self._starts[min(block, len(self.blocks))] if block >= 0 else 0

    def _stage(self, number: int) -> Stage:
        block = bisect_right(self._starts, number) - 1
        stage = self.pattern(block)[number - self._starts[block]]
        return Stage(stage.kind, self.blocks[block].bucket, stage.hop, self.after(block, stage))

    @cached_property
    def _starts(self) -> Sequence[int]:
        return [0, *accumulate(len(self.patterns[block.pattern]) for block in self.blocks)]
