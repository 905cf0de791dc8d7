"""Does an engine give back what updates take?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_transport.memory.segment import PREFIX, SHM
from ckpt_transport.testing.engine.check import check
from ckpt_transport.testing.engine.trial import Trial
from ckpt_transport.testing.side_channel import Broken

UPDATES = 8
"""What each of them leaves behind shows after so many."""
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class _Taken:
    """What processes have taken: threads, open files (sockets among them) and shared memory."""

    threads: int
    files: int
    segments: int

    @classmethod
    def by(cls, processes: Sequence[int]) -> _Taken:
        return cls(
            threads=sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in processes),
            files=sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes),
            segments=sum(len(list(SHM.glob(f"{PREFIX}*-{pid}-*"))) for pid in processes),
        )

    def grown(self, since: _Taken) -> list[str]:
        """What there is more of, by one for each update at least."""
        grown = {
            "threads": self.threads - since.threads,
            "open files": self.files - since.files,
            "segments of shared memory": self.segments - since.segments,
        }
        return [f"{UPDATES} updates leave {more} {name}" for name, more in grown.items() if more >= UPDATES]


@check("Updates leave no threads, open files and shared memory behind.", "Engine.resume")
def check_leaks_nothing(trial: Trial) -> None:
    processes = trial.engine.processes
    for version in (2, 1, 2, 1):
        trial.update(version, "in_place" if version == 2 else "auto")
    before = _Taken.by(processes)
    for number in range(UPDATES):
        trial.update(2 - number % 2, "in_place" if number % 4 < 2 else "auto")
    deadline = time.monotonic() + trial.patience.must
    while grown := _Taken.by(processes).grown(before):
        if time.monotonic() > deadline:
            raise Broken("; ".join(grown))
        time.sleep(POLL_SECONDS)
