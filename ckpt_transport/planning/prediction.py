"""The cost model predicts how long trees take, from the loads that they put on links.

Links work at the same time, so a plan takes as long as its busiest link does, and besides what it takes until the first
bucket has come there and the last one has left it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ckpt_transport.planning.loads import RECEIVES, Crossed, Load, Loads
from ckpt_transport.planning.values.prediction import Prediction


class Moved(NamedTuple):
    """What goes along one tree.

    Attributes:
        stages: what a bucket asks for, in turn.
        nbytes: how much goes there.
        buckets: in so many.
    """

    stages: list[Loads]
    nbytes: int
    buckets: int


@dataclass(slots=True)
class _Busy:
    seconds: float = 0.0
    nbytes: float = 0.0
    measured: bool = True

    def add(self, load: Load, nbytes: int, buckets: int) -> None:
        self.seconds += nbytes * load.seconds_per_byte + buckets * load.seconds_per_bucket
        self.nbytes += load.bytes_per_byte * nbytes
        self.measured = self.measured and load.measured


def predict(trees: Iterable[Moved]) -> Prediction:
    """How long it takes when all of ``trees`` are used at the same time."""
    every = list(trees)
    until_full = max((_until_full(moved) for moved in every), default=0.0)
    busy: dict[Crossed, _Busy] = {}
    for stage, nbytes, buckets in _together(every):
        for link, load in stage.items():
            one = busy.get(link)
            if one is None:
                one = busy[link] = _Busy()
            one.add(load, nbytes, buckets)
    slowest, most = max(busy.items(), key=lambda each: (each[1].seconds, each[0]))
    return Prediction(most.seconds + until_full, str(slowest), most.seconds, most.nbytes, most.measured)


def received(trees: Iterable[Moved]) -> tuple[float, float]:
    """The bytes that are received into slots: of the rank that receives most, and of all ranks."""
    by_rank: defaultdict[Crossed, float] = defaultdict(float)
    for stage, nbytes, _ in _together(trees):
        for link, load in stage.items():
            if link.words == RECEIVES:
                by_rank[link] += load.bytes_per_byte * nbytes
    return max(by_rank.values(), default=0.0), sum(by_rank.values())


def _together(trees: Iterable[Moved]) -> Iterator[tuple[Loads, int, int]]:
    """What is asked of links by all trees that share it, and the bytes and buckets of these."""
    found: dict[int, tuple[Loads, int, int]] = {}
    for moved in trees:
        for stage in moved.stages:
            _, nbytes, buckets = found.get(id(stage), (stage, 0, 0))
            found[id(stage)] = stage, nbytes + moved.nbytes, buckets + moved.buckets
    yield from found.values()


def _until_full(moved: Moved) -> float:
    """What one bucket takes in the stages around its slowest one: then it has filled the pipeline and drained it."""
    each = [stage.seconds(moved.nbytes / max(moved.buckets, 1)) for stage in moved.stages]
    return sum(each) - max(each)
