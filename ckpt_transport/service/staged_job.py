"""A staged job is a version that every sink has beside what it serves, until its owner has it committed or dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self

from ckpt_transport.errors import CkptTransportError, UpdateAbortedError, UsageError
from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.service.turns import Turns
from ckpt_transport.update.report import Report
from ckpt_transport.update.turn import Turn


class StagedUpdate(Protocol):
    """One source rank's part in an update that waits for its commit."""

    def commit(self, before_hold: Callable[[], None] | None) -> Report | None:
        """Go on to its end."""

    def drop(self, cause: CkptTransportError) -> None:
        """Have every sink go on with what it serves."""


class StagedJob:
    """Made by :meth:`ParameterServer.stage`. Engines serve the old version until :meth:`commit`, and nothing is held.

    As a context it is dropped at the end of the block, unless it was committed. With several source ranks all of them
    make the same calls, and rank 0 says when.

    Attributes:
        version: its name.
    """

    def __init__(
        self, version: str, staged: StagedUpdate, turn: Turn, turns: Turns, guard: CallGuard, timeout: float
    ) -> None:
        self.version = version
        self._staged: StagedUpdate | None = staged
        self._turn, self._turns, self._guard, self._timeout = turn, turns, guard, timeout
        self._ended: CkptTransportError = UsageError("")

    def commit(self, before_hold: Callable[[], None] | None = None) -> Report | None:
        """Have every sink serve the version, or none. Forward passes are held while each exchanges two versions.

        Returns: as :meth:`ParameterServer.update`; the phase ``wait`` is how long the version has waited for this.

        Args:
            before_hold: as that of :meth:`ParameterServer.update`.

        Raises:
            SupersededError: a newer update has taken its place; every sink serves the old version, or the newer one.
            UpdateAbortedError: a sink or a source has left since it was staged, it waited for longer than
                ``commit_timeout``, or it failed; every sink serves the old version.
            TaintedError, KeyboardInterrupt: as :meth:`ParameterServer.update`.
            UsageError: it has ended already, the server was closed, or another process made it.
        """
        with self._guard.one(f"commit of '{self.version}'", self._timeout):
            staged = self._take_out(UsageError(f"'{self.version}' was committed already, or failed to be"))
            try:
                return staged.commit(before_hold)
            finally:
                self._turn.ended = True
                self._turns.pass_on()

    def drop(self) -> None:
        """Have every sink let go of the version. Nothing else changes, and sinks are free for others. Idempotent.

        Raises:
            UsageError: another process made it, or this thread is in a call of the server.
        """
        if self._staged is None:
            return
        with self._guard.one(f"drop of '{self.version}'", self._timeout):
            self.end(UpdateAbortedError(f"'{self.version}' was dropped; it changed nothing"))

    def give_way(self) -> None:
        """End, because a newer update has taken the turn."""
        with self._guard.one(f"drop of '{self.version}'", self._timeout):
            try:
                self._turn.check()
            except CkptTransportError as superseded:
                self.end(superseded)

    def end(self, cause: CkptTransportError) -> None:
        """Drop it, unless it has ended; the caller has the server to itself.

        Args:
            cause: what who commits it later is told.
        """
        if self._staged is None:
            return
        staged = self._take_out(cause)
        try:
            staged.drop(cause)
        finally:
            self._turn.ended = True
            self._turns.pass_on()

    def _take_out(self, ended: CkptTransportError) -> StagedUpdate:
        """What is to be ended; it cannot be taken out again.

        Raises: what the first one who took it out has left.
        """
        if self._staged is None:
            raise self._ended
        staged, self._staged, self._ended = self._staged, None, ended
        return staged

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._staged is not None and self._guard.here:
            self.drop()
