"""Drives a running engine: finds its sinks, and does what must be done before and after an update."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ckpt_transport.config import Config
from ckpt_transport.errors import EngineError
from ckpt_transport.service.claims import EngineClaim
from ckpt_transport.service.fleet.driven_engine import DrivenEngine

EngineT = TypeVar("EngineT", bound=DrivenEngine)
NO_PAUSE = "none"
"""Requests are not held: only forward passes are, by the sinks."""
PAUSE = "pause"
"""What is noted at a sink while an engine is paused for an update."""
STUCK_SECONDS = 5.0
"""How long an engine may take to pause that has a forward pass waiting."""


class Driver(ABC, Generic[EngineT]):
    """Drives one engine through one update after another.

    In each: :meth:`find`, :meth:`take`, :meth:`begin`, :meth:`pause`, :meth:`serve` or :meth:`give_up`, :meth:`end`.

    Args:
        engine: is driven.
        config: deadlines.
        pause: the engine's mode of pausing, or :data:`NO_PAUSE`.

    Attributes:
        sinks: of all workers.
        keeper: the sink at which the engine is claimed: the first by its address, unless :meth:`_find_sinks` names one.
        held: seconds for which the last update held requests.
    """

    def __init__(self, engine: EngineT, config: Config, pause: str) -> None:
        self.engine, self._config, self._mode = engine, config, pause
        self.sinks: tuple[str, ...] = ()
        self.keeper = ""
        self.held = 0.0
        self._claim: EngineClaim | None = None
        self._paused = self._paused_by_others = self._stuck = False
        self._held_since = 0.0

    @property
    def is_claimed(self) -> bool:
        """Whether this program drives the engine."""
        return self._claim is not None

    def find(self) -> None:
        """Find the sinks of all workers.

        An engine whose forward pass waits for an update answers nothing: its sinks are those that it had.
        """
        self.held = 0.0
        if self._stuck:
            return
        self.keeper = ""
        found = self._find_sinks()
        expected = self.engine.world_size()
        if len(found) != expected:
            raise EngineError(
                f"{self.engine.name} has {expected} workers, and {len(found)} of them can be updated; its log says why "
                "the others cannot"
            )
        self.sinks, self.keeper = tuple(found), self.keeper or min(found)

    def take(self, claim: EngineClaim) -> None:
        """This program drives the engine from now on. A pause that another one has left is ended with the update."""
        self._claim = claim
        self._paused = PAUSE in claim.begun

    def begin(self) -> None:
        """Do what the engine needs before an update. Requests do not notice."""

    def pause(self) -> None:
        """Hold requests, as far as that was asked for.

        An engine that others have paused is left as it is: its requests are held already, and in their mode.
        """
        self._held_since = time.monotonic()
        asks_first = self._mode == NO_PAUSE or not self.engine.tells_pauses_apart
        self._paused_by_others = asks_first and not self._paused and self.engine.is_paused()
        if self._mode != NO_PAUSE and not self._paused_by_others:
            self._pause(self._mode, self._config.update_timeout)

    def _pause(self, mode: str, timeout: float) -> None:
        self._own_claim.begin(PAUSE)
        self._paused = True
        self.engine.pause(mode, timeout)
        if self.engine.paused_by_others:
            self._own_claim.end(PAUSE)
            self._paused, self._paused_by_others = False, True

    def serve(self, version: str) -> str:
        """All workers have committed: serve requests from the new weights. Returns what keeps the engine from that."""
        self._own_claim.check()
        if self._paused:
            held = self._renew_and_resume(version)
            told = self._resumed(held or self._stuck)
        else:
            told = self._left_as_it_was(self._renew(version))
        self._stuck = False
        return told

    def give_up(self, tainted: bool) -> str:
        """The update failed: serve on, unless the weights are a mix. Returns what was done, for people."""
        if not self.is_claimed:
            return f"{self.engine.name} was not touched"
        self._own_claim.check()
        self._abandon()
        if not tainted:
            return self._resume(self.engine.is_paused) or f"{self.engine.name} serves the old version"
        if not self._paused_by_others:
            try:
                self._pause(self.engine.pause_modes[0], STUCK_SECONDS)
            except EngineError:
                self._stuck = True
                return (
                    f"{self.engine.name} holds a mix of two versions, and a forward pass waits there until its sinks "
                    f"are updated: {', '.join(self.sinks)}"
                )
        if self._paused_by_others:
            return f"{self.engine.name} holds a mix of two versions, and others have paused it: leave it paused"
        return f"{self.engine.name} holds a mix of two versions and is left paused until an update succeeds"

    def end(self) -> None:
        """Let others drive the engine."""
        if self._claim is not None:
            self._claim.release()
        self._claim = None

    @property
    def _own_claim(self) -> EngineClaim:
        assert self._claim is not None, "the engine was not claimed"
        return self._claim

    def _resume(self, is_paused: Callable[[], bool]) -> str:
        """Have requests served again, unless others have paused the engine.

        Args:
            is_paused: says whether requests are held.

        Returns: why the engine serves nobody, or that others have ended a pause of ours; else nothing.
        """
        if not self._paused:
            return self._left_as_it_was(is_paused())
        held = self._stuck or is_paused()
        self.engine.resume()
        return self._resumed(held)

    def _left_as_it_was(self, held: bool) -> str:
        """This program has not paused the engine: why it serves nobody, where requests are held."""
        self._held_since = 0.0
        return self._why_paused() if held else ""

    def _resumed(self, held: bool) -> str:
        """A pause of this program was ended, until which requests were ``held``.

        Returns: that others have ended it before, or why requests are held still; else nothing.
        """
        told = self._why_paused() if self.engine.paused_by_others else ""
        if not held:
            told = (
                f"{self.engine.name} was resumed by others while it was paused for an update, so that requests "
                "went on between two forward passes, as without a pause"
            )
        self.held = time.monotonic() - self._held_since if self._held_since else 0.0
        self._own_claim.end(PAUSE)
        self._paused, self._held_since = False, 0.0
        return told

    def _why_paused(self) -> str:
        """Why an engine serves nobody that this program has not paused."""
        return f"{self.engine.name} is left paused, as others have asked of it: {self.engine.resume_hint}"

    @abstractmethod
    def warm_up(self) -> None:
        """Have all workers, whose sinks were found, do in the background what the first update would do."""

    @abstractmethod
    def _find_sinks(self) -> Sequence[str]:
        """The address of every worker's sink."""

    def _renew(self, version: str) -> bool:
        """See :meth:`DrivenEngine.renew`."""
        return self.engine.renew(version)

    def _renew_and_resume(self, version: str) -> bool:
        """:meth:`_renew`, and then serve requests again. Returns whether they were held until then."""
        held = self._renew(version)
        self.engine.resume()
        return held

    def _abandon(self) -> None:
        """End what :meth:`begin` and :meth:`pause` have begun in the engine, other than the pause."""
