"""The version before the one that a sink serves, and what brings it back."""

from __future__ import annotations

from ckpt_transport.engine import Engine
from ckpt_transport.update.delta_engine import DeltaEngine


class KeptVersion:
    """Knows what a rollback brings back: what a staging area holds, or what undoes the last delta.

    Attributes:
        name: of the version; empty where there is no way back.
        undo: what undoes a delta, and does it again; None where the staging area holds the version.
    """

    def __init__(self) -> None:
        self.name = ""
        self.undo: DeltaEngine | None = None

    def was_left(self, version: str, engine: Engine) -> None:
        """Another version is served than that one, which ``engine`` has exchanged and can bring back."""
        self.name = version
        self.undo = engine if isinstance(engine, DeltaEngine) else None

    def was_overwritten(self, engine: Engine) -> None:
        """A version was staged by ``engine`` and is not served. One that came whole has taken the staging area."""
        if self.undo is None and not isinstance(engine, DeltaEngine):
            self.name = ""

    def forget(self) -> None:
        """There is no way back."""
        self.name, self.undo = "", None

    def was_mixed(self) -> None:
        """What is served is a mix of two versions, on which no delta can be undone."""
        if self.undo is not None:
            self.forget()
