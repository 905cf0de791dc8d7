"""A check of an engine is one promise to who asks it or updates it, and finds out whether the engine keeps it."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ckpt_transport.testing.engine.trial import Call, MakeEngine, NotApplicableError, Patience, Trial
from ckpt_transport.testing.report import ConformanceError
from ckpt_transport.testing.side_channel import Broken

DEADLINE = 300.0
"""Seconds that nothing takes which does not hang."""
SETTINGS = {"heartbeat_timeout": 60.0, "join_timeout": 60.0, "update_timeout": 120.0}
"""Of all who take part: nobody who lives is taken for dead."""


@dataclass(frozen=True)
class EngineCheck:
    """Checks one promise: call it with what makes an engine; it returns when the promise is kept.

    Attributes:
        name: short, for reports and for choosing.
        promise: what is promised, in a sentence.
        where: where in the documentation the promise stands.
        body: what is done with one engine.
    """

    name: str
    promise: str
    where: str
    body: Callable[[Trial], None]

    def __call__(self, make: MakeEngine, *, patience: Patience | None = None, **settings: Any) -> None:
        """Check one kind of engine.

        Args:
            make: makes an engine, as the class of an ``EngineUnderTest`` does.
            patience: how long to wait for what must, and must not, happen.
            settings: of :class:`~ckpt_transport.Config`, beside those that have no engine taken for dead.

        Raises:
            ConformanceError: the promise is not kept.
            NotApplicableError: it cannot be asked of this engine. pytest skips the test then.
        """
        patience = patience or Patience()
        ran = Call(lambda: self._run(make, {**SETTINGS, **settings}, patience))
        if not ran.ended.wait(DEADLINE):
            raise ConformanceError(self, name_of(make), f"the check hangs for {DEADLINE:g} s")
        if isinstance(ran.error, NotApplicableError):
            raise ran.error
        if isinstance(ran.error, Broken):
            raise ConformanceError(self, name_of(make), str(ran.error)) from ran.error
        if ran.error is not None:
            told = "".join(traceback.format_exception(ran.error)).rstrip()
            raise ConformanceError(self, name_of(make), told) from ran.error

    def _run(self, make: MakeEngine, settings: dict[str, Any], patience: Patience) -> None:
        with Trial(make, settings, patience) as trial:
            self.body(trial)


def check(promise: str, where: str) -> Callable[[Callable[[Trial], None]], EngineCheck]:
    """Make an :class:`EngineCheck` of the function ``check_NAME(trial)``."""
    return lambda body: EngineCheck(body.__name__.removeprefix("check_"), promise, where, body)


def name_of(make: MakeEngine) -> str:
    """What the engine is called in messages."""
    made = make.func if isinstance(make, functools.partial) else make
    return f"engine '{getattr(made, '__name__', type(made).__name__)}'"
