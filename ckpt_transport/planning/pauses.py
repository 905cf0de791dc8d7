"""Pauses are predicted: how long forward passes stand still for an update in place, and for a staged one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from ckpt_transport.planning.links import Links, MeasuredRates
from ckpt_transport.planning.loads import DEVICE, MEMORY, Crossed
from ckpt_transport.planning.values.plan import Plan
from ckpt_transport.planning.values.prediction import Prediction
from ckpt_transport.planning.values.topology import RankInfo
from ckpt_transport.rates import LinkKind
from ckpt_transport.sizes import duration

BOTH_WAYS = "{} to GPU {:.8} and back"
BOTH_WAYS_RATE = 0.71
"""An exchange over PCIe sends as much each way at the same time, and each way is so much slower than alone: measured on
an H200 (``benchmarks/results/staged-vllm.md``)."""
EXCHANGED = 2.0
"""An exchange within one memory reads and writes both sides: as much as so many copies."""
SHORTER = 0.95
"""No cost model tells pauses apart of which one is more than so much of the other."""


class StagingPlace(msgspec.Struct, frozen=True, array_like=True):
    """Where a sink stages a version.

    Attributes:
        nbytes: of the staging area.
        on_host: it is in page-locked memory of the host, for weights on a GPU.
    """

    nbytes: int
    on_host: bool = False


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long forward passes are expected to stand still.

    Attributes:
        in_place: when the version is written over what is served: for the whole transfer.
        staged: when it is staged first: for the exchange. None where a sink stages nothing, or does not say how.
    """

    in_place: Prediction
    staged: Prediction | None = None

    @property
    def in_place_is_shorter(self) -> bool:
        """Whether requests wait longer for the exchange than for the whole transfer."""
        return self.staged is not None and self.in_place.seconds < self.staged.seconds * SHORTER

    def to_dict(self) -> dict[str, float | None]:
        """Seconds, by how the version is taken."""
        return {"staged": None if self.staged is None else self.staged.seconds, "in_place": self.in_place.seconds}

    def __str__(self) -> str:
        found = [f"in place {_in_words(self.in_place)}"]
        if self.staged is not None:
            found.insert(0, f"staged {_in_words(self.staged)}")
        return "; ".join(found)


def expect_pauses(plan: Plan, places: Mapping[int, StagingPlace], rates: MeasuredRates) -> Pauses:
    """Predict both pauses of an update.

    Args:
        plan: what is brought.
        places: where sinks stage it, by rank; of those that do and say so.
        rates: of the links of hosts, where they were measured.
    """
    if any(rank not in places for rank in plan.topology.sinks):
        return Pauses(plan.prediction)
    links, busy = Links(rates), _Busy()
    for rank, place in places.items():
        busy.exchange(plan.topology.participants[rank], place, links)
    return Pauses(plan.prediction, busy.longest())


class _Busy:
    """How long each link is busy with exchanges, and whether its rate was measured."""

    def __init__(self) -> None:
        self._seconds: defaultdict[Crossed, float] = defaultdict(float)
        self._nbytes: defaultdict[Crossed, float] = defaultdict(float)
        self._measured: dict[Crossed, bool] = {}

    def exchange(self, rank: RankInfo, place: StagingPlace, links: Links) -> None:
        """Add the exchange of one sink."""
        host, gpu = rank.host, rank.device
        if not gpu:
            link, times = Crossed(MEMORY, host), EXCHANGED
            rate, measured = links.rate(host, LinkKind.MEMORY)
        elif not place.on_host:
            link, times = Crossed(DEVICE, gpu), EXCHANGED
            rate, measured = links.rate(host, LinkKind.DEVICE, gpu, gpu)
        else:
            link, times = Crossed(BOTH_WAYS, host, gpu), 1 / BOTH_WAYS_RATE
            ways = links.rate(host, LinkKind.TO_DEVICE, "", gpu), links.rate(host, LinkKind.FROM_DEVICE, gpu)
            rate, measured = min(each for each, _ in ways), all(known for _, known in ways)
        self._seconds[link] += times * place.nbytes / rate
        self._nbytes[link] += place.nbytes
        self._measured[link] = measured

    def longest(self) -> Prediction:
        """Exchanges run at the same time, so they take as long as the busiest link."""
        link = max(self._seconds, key=lambda each: (self._seconds[each], each))
        seconds = self._seconds[link]
        return Prediction(seconds, str(link), seconds, self._nbytes[link], self._measured[link])


def _in_words(pause: Prediction) -> str:
    how = "measured" if pause.measured else "assumed"
    return f"{duration(pause.seconds)}, for {pause.link} ({how} rates)"
