"""Updates running engines of one kind, all of them in one plan."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, Self

from ckpt_transport.checkpoint import Loan, TensorPairs, Tensors
from ckpt_transport.config import Config
from ckpt_transport.errors import ConfigError, EngineError, UpdateAbortedError
from ckpt_transport.service.auto import AUTO, AnyMapping
from ckpt_transport.service.awaited_job import AwaitedJob, staged_awaiting
from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.service.fleet.driver import Driver, EngineT
from ckpt_transport.service.fleet.interface import FleetReport, Publishes, RollsBack, StagesVersions, Updates
from ckpt_transport.service.fleet.led_engines import ASK_SECONDS, LedEngines, step
from ckpt_transport.service.fleet.staged_engines import StagedEngines, StagedFollowing
from ckpt_transport.service.previous import previous_version
from ckpt_transport.service.query import ask_version
from ckpt_transport.service.staged_job import StagedJob
from ckpt_transport.service.stager import Stager
from ckpt_transport.service.turns import Turns
from ckpt_transport.update.progress import Progress
from ckpt_transport.update.report import Report
from ckpt_transport.update.turn import Turn

POLL_SECONDS = 0.1
WARMS_UP = "warms up"
"""How a sink begins to say that it has not ended yet."""


class EngineFleet(ABC, Generic[EngineT]):
    """Running engines of one kind. A subclass says how one of them is driven.

    Args:
        engines: at least one, each under a name of its own. Closed with the fleet.
        config: settings.
        pause: what becomes of running requests: one of the engines' modes.
        patience: seconds to wait for engines that are still starting; by default ``endpoint_timeout``.

    Raises:
        ConfigError: no engine, one named twice, or another ``pause``.
    """

    def __init__(self, engines: Sequence[EngineT], config: Config, pause: str, patience: float | None = None) -> None:
        if not engines:
            raise ConfigError("name at least one endpoint, as http://127.0.0.1:8000")
        if pause not in engines[0].pause_modes:
            raise ConfigError(f"pause is '{pause}' and must be one of {', '.join(engines[0].pause_modes)}")
        names = [engine.name for engine in engines]
        if len(set(names)) != len(names):
            raise ConfigError(f"an endpoint is named twice in {', '.join(names)}")
        self._call_guard = CallGuard(type(self).__name__)
        self._engines, self._config, self._pause = engines, config, pause
        self._led = LedEngines(
            engines, self._driver_for, config, config.endpoint_timeout if patience is None else patience
        )
        self._turns = Turns(self._call_guard, alone=False, raise_interrupt=lambda: None)
        self._stager: Stager[FleetReport] = Stager(
            self._turns, self._call_guard, lambda call, act, turn: act(turn), lambda: None, config.update_timeout
        )

    @abstractmethod
    def _driver_for(self, engine: EngineT) -> Driver[EngineT]:
        """The driver of one engine, which serves.

        Raises:
            EngineError: it cannot be updated; says how it is started so that it can.
        """

    def update(
        self, server: Updates, version: str, progress: Progress | None = None, *, other_sinks: Sequence[str] = ()
    ) -> FleetReport | None:
        """Bring a version that ``server`` has registered to every engine: everywhere or nowhere.

        All ranks of ``server`` call it. Any thread may call; updates take turns.

        Args:
            server: a :class:`~ckpt_transport.ParameterServer` or a :class:`~ckpt_transport.Joiner`.
            version: its name.
            progress: told about the bytes that were sent.
            other_sinks: addresses of sinks that are no engine's of this fleet, as of attached modules. They are
                brought along in the same plan.

        Returns: what happened, on rank 0; None on the others, which take part in the update and ask no engine.

        Raises:
            EngineError: an engine cannot be asked or driven; nothing has changed.
            UpdateAbortedError, TaintedError: as ``ParameterServer.update``. Engines on the old version go on
                serving; tainted ones are left paused. Notes on the error say which.
        """

        def bring(sinks: Sequence[str], pause: Callable[[], None]) -> Report | None:
            return server.update(version, sinks, progress, pause)

        def follow() -> None:
            server.update(version, progress=progress)

        return self._bring(f"update('{version}')", server.rank, version, bring, follow, other_sinks)

    def publish(
        self,
        server: Publishes,
        version: str,
        tensors: Tensors | TensorPairs | Loan,
        progress: Progress | None = None,
        *,
        other_sinks: Sequence[str] = (),
        replicated: bool = False,
        mapping: AnyMapping = None,
        base: str = "",
    ) -> FleetReport | None:
        """Bring a step's weights to every engine: take them in, update, and let them go.

        This is what a training loop calls, on all ranks of ``server``.

        Args:
            server: takes the weights in.
            version: a name that no version has there.
            tensors, progress, replicated, mapping, base: as those of ``ParameterServer.publish``.
            other_sinks: as those of :meth:`update`.

        Returns, and raises, as :meth:`update`; raises also as ``ParameterServer.publish``.
        """
        publish = partial(server.publish, version, tensors, replicated=replicated, mapping=mapping, base=base)

        def bring(sinks: Sequence[str], pause: Callable[[], None]) -> Report | None:
            return publish(sinks, progress, pause)

        def follow() -> None:
            publish([*self._led.find_sinks(), *other_sinks] if mapping == AUTO else None, progress)

        return self._bring(f"publish('{version}')", server.rank, version, bring, follow, other_sinks)

    def stage(
        self,
        server: StagesVersions,
        version: str,
        progress: Progress | None = None,
        *,
        other_sinks: Sequence[str] = (),
        supersede: bool = False,
    ) -> StagedJob[FleetReport]:
        """Bring a version beside what every engine serves, and leave the moment of the commit to the caller.

        All ranks of ``server`` call it, and then ``commit`` or ``drop`` of what it returns. At the commit engines are
        paused, exchange the two versions, drop their caches, name the version and serve on. Until then no request is
        held, and no other program drives the engines. Other updates of this fleet wait, too.

        Args:
            server, version, progress, supersede: as those of ``ParameterServer.stage``.
            other_sinks: as those of :meth:`update`.

        Returns: what commits it, or drops it. Its ``commit`` returns, and raises, as :meth:`update`.

        Raises: as ``ParameterServer.stage``, and EngineError as :meth:`update`; nothing has changed.
        """
        stage = partial(server.stage, version, progress=progress, supersede=supersede)
        steps: dict[str, float] = {}

        def beside() -> StagedJob[Report]:
            sinks = self._led.begin("the update", lambda sinks: version, other_sinks, steps)[1]
            with step(steps, "stage"):
                return self._led.or_go_back(version, lambda: stage(sinks))

        def bring(job: StagedJob[FleetReport]) -> None:
            if server.rank > 0:
                job.stage(StagedFollowing(stage))
            else:
                finish, give_up = partial(self._led.finish, version, steps), partial(self._led.give_up, version)
                job.stage(StagedEngines(beside, finish, give_up))

        return self._stager.stage(version, bring, Turn(f"stage('{version}')"), supersede=supersede)

    async def staging(
        self,
        server: StagesVersions,
        version: str,
        progress: Progress | None = None,
        *,
        other_sinks: Sequence[str] = (),
        supersede: bool = False,
    ) -> AwaitedJob[FleetReport]:
        """Stage a version from an event loop, as ``ParameterServer.staging``, whose job it gives.

        Args, Raises: as :meth:`stage`.
        """
        stage = partial(self.stage, server, version, progress, other_sinks=other_sinks, supersede=supersede)
        return await staged_awaiting(stage, server.awaiting)

    def rollback(self, server: RollsBack, *, other_sinks: Sequence[str] = ()) -> FleetReport:
        """Have every engine, and ``other_sinks``, serve the version before, which their sinks have kept.

        Raises: as :meth:`update`, and as ``ParameterServer.rollback``.
        """

        def roll_back() -> FleetReport:
            return self._lead(
                "the rollback", lambda sinks: previous_version(sinks, self._config), server.rollback, other_sinks
            )

        return self._turns.one(Turn("rollback()"), self._config.update_timeout, roll_back)

    def _bring(
        self,
        what: str,
        rank: int,
        version: str,
        bring: Callable[[Sequence[str], Callable[[], None]], Report | None],
        follow: Callable[[], None],
        other_sinks: Sequence[str],
    ) -> FleetReport | None:
        """Have every engine serve ``version`` in a call that is named ``what``; ranks above 0 only follow."""

        def lead(sinks: Sequence[str], pause: Callable[[], None]) -> Report:
            report = bring(sinks, pause)
            assert report is not None, "who leads gets a report"
            return report

        def act() -> FleetReport | None:
            if rank > 0:
                follow()
                return None
            return self._lead("the update", lambda sinks: version, lead, other_sinks)

        return self._turns.one(Turn(what), self._config.update_timeout, act)

    def _lead(
        self,
        what: str,
        name: Callable[[Sequence[str]], str],
        bring: Callable[[Sequence[str], Callable[[], None]], Report],
        other_sinks: Sequence[str],
    ) -> FleetReport:
        """Have every engine serve a version.

        Args:
            what: is done, in words.
            name: tells the name of the version.
            bring: has the sinks serve it; calls what it is given before it holds forward passes.
            other_sinks: are brought along.
        """
        steps: dict[str, float] = {}
        try:
            version, sinks = self._led.begin(what, name, other_sinks, steps)
            return self._led.finish(version, steps, partial(bring, sinks))
        finally:
            self._led.let_go()

    def warm_up(self) -> dict[str, str]:
        """Have every engine do, while it serves, what its first update would do, and wait for that.

        Returns: for each sink, by its address, what it has done, or why it could not, in words.

        Raises:
            EngineError: an engine does not answer, or does not know what versions look like.
        """

        def warm_up() -> dict[str, str]:
            sinks = self._led.warm_up()
            return dict(zip(sinks, self._led.each(sinks, self._warmed_up), strict=True))

        return self._call_guard.one("warm_up()", self._config.update_timeout, warm_up)

    def sinks(self) -> tuple[str, ...]:
        """Find the sinks of all engines: their addresses, the engines in order.

        What is brought to these addresses by others, as by ``ParameterServer.stage``, pauses no engine, drops no cache
        and labels no version; :meth:`update` and :meth:`stage` do.

        Raises:
            EngineError: an engine does not answer within ``endpoint_timeout``, or cannot be updated.
        """
        return self._call_guard.one("sinks()", self._config.update_timeout, self._led.find_sinks)

    def _warmed_up(self, sink: str) -> str:
        """Wait until a sink has warmed up; what it says of that."""
        deadline = time.monotonic() + self._config.update_timeout
        while True:
            served = ask_version(sink, self._config, ASK_SECONDS)
            if served.warm_up and not served.warm_up.startswith(WARMS_UP):
                return f"{served.label} {served.warm_up}"
            if time.monotonic() > deadline:
                raise EngineError(
                    f"{served.label} has not warmed up after {self._config.update_timeout:g} s: "
                    f"{served.warm_up or 'it has not begun'}"
                )
            time.sleep(POLL_SECONDS)

    def versions(self) -> tuple[str, ...]:
        """What each engine says it serves; empty when it has no name for it.

        Raises:
            EngineError: one does not answer.
        """
        self._call_guard.check()
        return self._led.versions()

    def close(self) -> None:
        """Let go of the engines, which serve on what they serve."""

        def let_go() -> None:
            self._stager.end(UpdateAbortedError("the fleet was closed before the commit; it changed nothing"))
            self._led.close()

        self._call_guard.last(let_go)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
