"""The versions before the one that a sink serves, and what brings each back."""

from __future__ import annotations

from typing import NamedTuple

from ckpt_transport.engine import Engine
from ckpt_transport.update.delta_engine import DeltaEngine


class Step(NamedTuple):
    """One exchange to another version.

    Attributes:
        name: of the version.
        undo: what undoes a delta, and does it again; None where the staging area holds the version.
    """

    name: str
    undo: DeltaEngine | None

    @property
    def nbytes(self) -> int:
        return 0 if self.undo is None else self.undo.nbytes


class KeptVersions:
    """Knows the way back: each step leads from what is served after the steps above it, the last one from what is now.

    Deltas have an undo log each, so there may be several. There is one staging area, which holds one version. Where no
    step back is left, the last one can be taken forward again.
    """

    def __init__(self) -> None:
        self._back: list[Step] = []
        self._forward: Step | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The versions to which rollbacks lead one after the other."""
        return tuple(step.name for step in reversed(self._back)) or ((self._forward.name,) if self._forward else ())

    @property
    def undo(self) -> DeltaEngine | None:
        """What the next rollback takes back; None where that is in the staging area, or where there is no way back."""
        step = self._next
        return None if step is None else step.undo

    @property
    def nbytes(self) -> int:
        """Bytes of all undo logs."""
        return sum(step.nbytes for step in self._steps)

    @property
    def _steps(self) -> list[Step]:
        return [*self._back, *filter(None, [self._forward])]

    @property
    def _next(self) -> Step | None:
        return self._back[-1] if self._back else self._forward

    def was_left(self, version: str, engine: Engine, most: int) -> None:
        """Another version is served than that one, which ``engine`` has exchanged and can bring back.

        Args:
            version, engine: what was served, and what has exchanged it.
            most: so many steps are kept.
        """
        self.was_overwritten(engine)
        self._forward = None
        self._back.append(_step(version, engine))
        del self._back[:-most]

    def went_back(self, version: str, engine: Engine) -> None:
        """A rollback has left that version by the next step, which ``engine`` has taken, and can take again."""
        step = _step(version, engine)
        if self._back:
            self._back.pop()
            self._forward = step
        else:
            self._back, self._forward = [step], None

    def was_overwritten(self, engine: Engine) -> None:
        """A version was staged by ``engine``. One that comes whole takes the staging area, and the way through it."""
        if isinstance(engine, DeltaEngine):
            return
        held = max((number for number, step in enumerate(self._back) if step.undo is None), default=-1)
        del self._back[: held + 1]
        if self._forward is not None and self._forward.undo is None:
            self._forward = None

    def make_room(self, nbytes: int) -> None:
        """Forget the oldest steps, until all undo logs together take at most so many bytes."""
        while self.nbytes > nbytes and self._steps:
            if self._forward is not None:
                self._forward = None
            else:
                del self._back[0]

    def forget(self) -> None:
        """There is no way back."""
        self._back, self._forward = [], None

    def was_mixed(self) -> None:
        """What is served is a mix of two versions, on which no delta can be undone."""
        if self.undo is not None:
            self.forget()


def _step(name: str, engine: Engine) -> Step:
    """One that ``engine`` has taken just now. What it has left is not known yet."""
    if not isinstance(engine, DeltaEngine):
        return Step(name, None)
    engine.digest_left = ""
    return Step(name, engine)
