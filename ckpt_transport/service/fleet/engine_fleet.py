"""Updates running engines of one kind, all of them in one plan."""

from __future__ import annotations

import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, Self, TypeVar

from ckpt_transport.checkpoint import Loan, TensorPairs, Tensors
from ckpt_transport.config import Config
from ckpt_transport.errors import ConfigError, EngineError
from ckpt_transport.reasons import in_words
from ckpt_transport.service.auto import AUTO, AnyMapping
from ckpt_transport.service.call_guard import CallGuard
from ckpt_transport.service.claims import Claims
from ckpt_transport.service.fleet.driver import Driver, EngineT
from ckpt_transport.service.fleet.interface import FleetReport, Publishes, RollsBack, Updates
from ckpt_transport.service.previous import previous_version
from ckpt_transport.service.query import ask_version
from ckpt_transport.update.progress import Progress
from ckpt_transport.update.report import Report

Thing = TypeVar("Thing")
Found = TypeVar("Found")
ASK_SECONDS = 30.0
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
        self._patience = config.endpoint_timeout if patience is None else patience
        self._drivers: list[Driver[EngineT]] = []
        self._claims = Claims(config)
        self._threads = ThreadPoolExecutor(len(names), "ckpt-transport-fleet")

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
            publish([*self._find_sinks(), *other_sinks] if mapping == AUTO else None, progress)

        return self._bring(f"publish('{version}')", server.rank, version, bring, follow, other_sinks)

    def rollback(self, server: RollsBack, *, other_sinks: Sequence[str] = ()) -> FleetReport:
        """Have every engine, and ``other_sinks``, serve the version before, which their sinks have kept.

        Raises: as :meth:`update`, and as ``ParameterServer.rollback``.
        """

        def roll_back() -> FleetReport:
            return self._lead(
                "the rollback", lambda sinks: previous_version(sinks, self._config), server.rollback, other_sinks
            )

        return self._call_guard.one("rollback()", self._config.update_timeout, roll_back)

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

        return self._call_guard.one(what, self._config.update_timeout, act)

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
        if is_first := not self._drivers:
            with _step(steps, "health"):
                self._each(self._engines, lambda each: each.wait(self._patience))
            with _step(steps, "attach"):
                self._find_drivers()

        def pause() -> None:
            with _step(steps, "pause"):
                self._each(self._drivers, lambda driver: driver.pause())

        version = ""
        try:
            try:
                with _step(steps, "attach"):
                    self._each(self._drivers, Driver.find if is_first else self._find_again)
                    sinks = [*(address for driver in self._drivers for address in driver.sinks), *other_sinks]
                    version = name(sinks)
                    self._claim(f"{what} to '{version}'")
                with _step(steps, "update"):
                    report = bring(sinks, pause)
            except BaseException as error:
                for line in self._return_to_service(self._drivers, version):
                    error.add_note(line)
                raise
            left = [driver for driver in self._drivers if report.left.keys() & set(driver.sinks)]
            with _step(steps, "resume"):
                there = [driver for driver in self._drivers if driver not in left]
                problems = [problem for problem in self._each(there, lambda driver: _serve(driver, version)) if problem]
                problems += self._return_to_service(left, version)
        finally:
            for driver in self._drivers:
                driver.end()
        problems += [f"{label} died after all had agreed to the new version" for label in report.lost]
        problems += report.left.values()
        held = {driver.engine.name: driver.held for driver in self._drivers}
        return FleetReport(report, steps, held, tuple(problems))

    def _claim(self, what: str) -> None:
        """Claim every server for what is done by this process."""
        leader = f"{what} by process {os.getpid()} on {socket.gethostname()}"
        claims = self._claims.take({driver.engine.name: driver.keeper for driver in self._drivers}, leader)
        for driver in self._drivers:
            driver.take(claims[driver.engine.name])
        self._each(self._drivers, lambda driver: driver.begin())

    def warm_up(self) -> dict[str, str]:
        """Have every engine do, while it serves, what its first update would do, and wait for that.

        Returns: for each sink, by its address, what it has done, or why it could not, in words.

        Raises:
            EngineError: an engine does not answer, or does not know what versions look like.
        """

        def warm_up() -> dict[str, str]:
            sinks = self._find_sinks()
            self._each(self._drivers, lambda driver: driver.warm_up())
            return dict(zip(sinks, self._each(sinks, self._warmed_up), strict=True))

        return self._call_guard.one("warm_up()", self._config.update_timeout, warm_up)

    def sinks(self) -> tuple[str, ...]:
        """Find the sinks of all engines: their addresses, the engines in order.

        An update of these addresses pauses no engine, drops no cache and labels no version; :meth:`update` does.

        Raises:
            EngineError: an engine does not answer within ``endpoint_timeout``, or cannot be updated.
        """
        return self._call_guard.one("sinks()", self._config.update_timeout, self._find_sinks)

    def _find_sinks(self) -> tuple[str, ...]:
        self._each(self._engines, lambda each: each.wait(self._patience))
        self._find_drivers()
        self._each(self._drivers, lambda driver: driver.find())
        return tuple(address for driver in self._drivers for address in driver.sinks)

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

    def _find_again(self, driver: Driver[EngineT]) -> None:
        """Find the sinks of an engine that was healthy in an update before; if that fails, once more when it serves."""
        try:
            driver.find()
        except EngineError:
            driver.engine.wait(self._patience)
            driver.find()

    def _find_drivers(self) -> None:
        if not self._drivers:
            found = self._each(self._engines, self._driver_for)
            self._drivers = found

    def versions(self) -> tuple[str, ...]:
        """What each engine says it serves; empty when it has no name for it.

        Raises:
            EngineError: one does not answer.
        """
        self._call_guard.check()
        return tuple(self._each(self._engines, lambda each: each.weight_version()))

    def _return_to_service(self, drivers: Sequence[Driver[EngineT]], version: str) -> list[str]:
        """The update to ``version`` failed: have every engine serve what it holds, if it may; one line about each.

        An update that fails while it is committed leaves some engines with the new version.
        """

        def go_on(driver: Driver[EngineT]) -> str:
            try:
                workers = [ask_version(sink, self._config, ASK_SECONDS) for sink in driver.sinks]
                versions = {worker.version for worker in workers}
                tainted = any(worker.tainted for worker in workers) or len(versions) > 1
                if driver.is_claimed and not tainted and versions == {version}:
                    return driver.serve(version) or f"{driver.engine.name} serves '{version}'"
                return driver.give_up(tainted)
            except Exception as error:
                return f"{driver.engine.name} could not be brought back to service: {in_words(error)}"

        return self._each(drivers, go_on)

    def _each(self, things: Sequence[Thing], act: Callable[[Thing], Found]) -> list[Found]:
        """Do it with all at once, and wait for all, before an error of one is raised."""
        futures = [self._threads.submit(act, thing) for thing in things]
        wait(futures)
        return [future.result() for future in futures]

    def close(self) -> None:
        """Let go of the engines, which serve on what they serve."""

        def let_go() -> None:
            self._claims.close()
            for engine in self._engines:
                engine.close()
            self._threads.shutdown()

        self._call_guard.last(let_go)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(driver: Driver[Any], version: str) -> str:
    """Have a driver's engine serve ``version``. Returns the problem, if there was one."""
    try:
        return driver.serve(version)
    except Exception as error:
        return f"{driver.engine.name} has {version} and may not serve it: {in_words(error)}"


@contextmanager
def _step(steps: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        steps[name] = steps.get(name, 0.0) + time.monotonic() - started
