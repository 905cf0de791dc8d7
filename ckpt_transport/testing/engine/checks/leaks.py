"""Does an engine give back what updates take?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from ckpt_transport.memory.segment import PREFIX, SHM
from ckpt_transport.testing.engine.check import check
from ckpt_transport.testing.engine.trial import Trial
from ckpt_transport.testing.side_channel import Broken

UPDATES = 8
"""What each of them leaves behind shows after so many."""
SPARE = 1
"""Of so many updates nothing need be there: what the last one left may come a little later."""
POLL_SECONDS = 0.05

Taken = Mapping[str, frozenset[str]]
"""What processes have taken, by its kind: which threads, open files (sockets among them) and segments."""


def taken_by(processes: Sequence[int]) -> Taken:
    """What these processes have now."""
    threads = (str(task) for pid in processes for task in Path(f"/proc/{pid}/task").iterdir())
    files = (f"{pid} {_target(each)}" for pid in processes for each in Path(f"/proc/{pid}/fd").iterdir())
    segments = (str(path) for pid in processes for path in SHM.glob(f"{PREFIX}*-{pid}-*"))
    return {
        "threads": frozenset(threads),
        "open files": frozenset(files),
        "segments of shared memory": frozenset(segments),
    }


def _target(link: Path) -> str:
    """What a descriptor is of; its number is soon given again."""
    try:
        return str(link.readlink())
    except OSError:
        return ""


def left(after_each: Sequence[Taken], now: Taken) -> list[str]:
    """Of what nearly every update has left something that is still there. What ends meanwhile hides nothing."""
    found = []
    for kind, there in now.items():
        leaving = sum(bool((after[kind] - before[kind]) & there) for before, after in pairwise(after_each))
        if leaving >= UPDATES - SPARE:
            found.append(f"{leaving} of {UPDATES} updates leave {kind}")
    return found


@check("Updates leave no threads, open files and shared memory behind.", "Engine.resume")
def check_leaks_nothing(trial: Trial) -> None:
    processes = trial.engine.processes
    for version in (2, 1, 2, 1):
        trial.update(version, "in_place" if version == 2 else "auto")
    after_each = [taken_by(processes)]
    for number in range(UPDATES):
        trial.update(2 - number % 2, "in_place" if number % 4 < 2 else "auto")
        after_each.append(taken_by(processes))
    deadline = time.monotonic() + trial.patience.must
    while found := left(after_each, taken_by(processes)):
        if time.monotonic() > deadline:
            raise Broken("; ".join(found))
        time.sleep(POLL_SECONDS)
