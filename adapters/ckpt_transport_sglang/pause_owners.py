"""Tells the pause of an update from one that others have asked for, where SGLang has its HTTP interface."""

from __future__ import annotations

from typing import Any

KEPT = "_ckpt_transport_pause_owners"
"""The attribute of a manager that has this."""
ABORT, IN_PLACE = "abort", "in_place"
"""Two of SGLang's modes. Its schedulers do not notice the first, which ends their requests and keeps others out."""


class PauseOwners:
    """Knows whether others hold the requests of an engine. SGLang keeps one flag for all who pause it.

    Args:
        manager: SGLang's, through which all requests go to schedulers.

    Attributes:
        by_others: whether others have paused the engine, and have not resumed it.
    """

    def __init__(self, manager: Any) -> None:
        self._manager, self._own = manager, object()
        self.by_others = bool(manager.is_pause)

    @classmethod
    def of(cls, manager: Any) -> PauseOwners:
        """Those of this manager."""
        if KEPT not in manager.__dict__:
            setattr(manager, KEPT, cls(manager))
        found: PauseOwners = manager.__dict__[KEPT]
        return found

    async def begin(self, mode: str) -> None:
        """Pause for an update, in a mode of SGLang, unless others have paused the engine."""
        from sglang.srt.managers.io_struct import PauseGenerationReqInput

        for each in (ABORT, IN_PLACE) if mode == ABORT else (mode,):
            if self.by_others:
                return
            self._own = asked = PauseGenerationReqInput(mode=each)
            await self._manager.pause_generation(asked)

    async def end(self) -> None:
        """End the pause of an update. One that others have asked for meanwhile goes on."""
        from sglang.srt.managers.io_struct import ContinueGenerationReqInput

        if not self.by_others:
            self._own = asked = ContinueGenerationReqInput(torch_empty_cache=False)
            await self._manager.continue_generation(asked)

    def note(self, asked: object, pauses: bool) -> None:
        """Somebody asks the manager to pause, or to go on: this, or others."""
        if asked is not self._own:
            self.by_others = pauses
