"""The engines of a fleet, as they are led through one update after another."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

from ckpt_transport.config import Config
from ckpt_transport.errors import EngineError
from ckpt_transport.reasons import in_words
from ckpt_transport.service.claims import Claims
from ckpt_transport.service.fleet.driver import Driver, EngineT
from ckpt_transport.service.fleet.interface import FleetReport
from ckpt_transport.service.query import ask_version
from ckpt_transport.update.report import Report

Thing = TypeVar("Thing")
Found = TypeVar("Found")
ASK_SECONDS = 30.0


class LedEngines(Generic[EngineT]):
    """Finds and claims engines, pauses them for an update, and has them serve again.

    Each update is :meth:`begin`, then :meth:`finish` or :meth:`give_up`, and :meth:`let_go`.

    Args:
        engines: are led.
        driver_for: makes the driver of one that serves.
        config: settings.
        patience: seconds to wait for engines that are still starting.
    """

    def __init__(
        self,
        engines: Sequence[EngineT],
        driver_for: Callable[[EngineT], Driver[EngineT]],
        config: Config,
        patience: float,
    ) -> None:
        self._engines, self._driver_for, self._config, self._patience = engines, driver_for, config, patience
        self._drivers: list[Driver[EngineT]] = []
        self._claims = Claims(config)
        self._threads = ThreadPoolExecutor(len(engines), "ckpt-transport-fleet")

    def begin(
        self,
        what: str,
        name: Callable[[Sequence[str]], str],
        other_sinks: Sequence[str],
        steps: dict[str, float],
    ) -> tuple[str, list[str]]:
        """Find and claim all engines, and do what they need before an update. Requests do not notice.

        Args:
            what: is done, in words.
            name: tells the name of the version.
            other_sinks: are brought along.
            steps: is told how long each took.

        Returns: the version that they are to serve, and all sinks.
        """
        if is_first := not self._drivers:
            with step(steps, "health"):
                self.each(self._engines, lambda each: each.wait(self._patience))
            with step(steps, "attach"):
                self._find_drivers()

        version = ""
        try:
            with step(steps, "attach"):
                self.each(self._drivers, Driver.find if is_first else self._find_again)
                sinks = [*(address for driver in self._drivers for address in driver.sinks), *other_sinks]
                version = name(sinks)
                self._claim(f"{what} to '{version}'")
        except BaseException as error:
            self._go_back(error, version)
            raise
        return version, sinks

    def finish(
        self, version: str, steps: dict[str, float], bring: Callable[[Callable[[], None]], Report]
    ) -> FleetReport:
        """Have all engines, which are claimed, serve a version.

        Args:
            version: its name.
            steps: as those of :meth:`begin`.
            bring: has the sinks serve it; calls what it is given before it holds forward passes.
        """

        def pause() -> None:
            with step(steps, "pause"):
                self.each(self._drivers, lambda driver: driver.pause())

        with step(steps, "update"):
            report = self.or_go_back(version, partial(bring, pause))
        left = [driver for driver in self._drivers if report.left.keys() & set(driver.sinks)]
        with step(steps, "resume"):
            there = [driver for driver in self._drivers if driver not in left]
            problems = [problem for problem in self.each(there, lambda driver: _serve(driver, version)) if problem]
            problems += self._return_to_service(left, version)
        problems += [f"{label} died after all had agreed to the new version" for label in report.lost]
        problems += report.left.values()
        held = {driver.engine.name: driver.held for driver in self._drivers}
        return FleetReport(report, steps, held, tuple(problems))

    def or_go_back(self, version: str, act: Callable[[], Found]) -> Found:
        """Act for an update to ``version``; where that fails, have every engine serve what it holds, if it may."""
        try:
            return act()
        except BaseException as error:
            self._go_back(error, version)
            raise

    def _go_back(self, error: BaseException, version: str) -> None:
        """The update to ``version`` failed: let all engines go, and note on the error what each serves."""
        try:
            for line in self._return_to_service(self._drivers, version):
                error.add_note(line)
        finally:
            self.let_go()

    def give_up(self, version: str) -> None:
        """Have engines that are still claimed serve what they hold, and let others drive them."""
        try:
            self._return_to_service([driver for driver in self._drivers if driver.is_claimed], version)
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Let others drive the engines."""
        for driver in self._drivers:
            driver.end()

    def _claim(self, what: str) -> None:
        """Claim every server for what is done by this process."""
        leader = f"{what} by process {os.getpid()} on {socket.gethostname()}"
        claims = self._claims.take({driver.engine.name: driver.keeper for driver in self._drivers}, leader)
        for driver in self._drivers:
            driver.take(claims[driver.engine.name])
        self.each(self._drivers, lambda driver: driver.begin())

    def find_sinks(self) -> tuple[str, ...]:
        """Find the sinks of all engines: their addresses, the engines in order."""
        self.each(self._engines, lambda each: each.wait(self._patience))
        self._find_drivers()
        self.each(self._drivers, lambda driver: driver.find())
        return tuple(address for driver in self._drivers for address in driver.sinks)

    def warm_up(self) -> tuple[str, ...]:
        """Have every engine do in the background what its first update would do. Returns the addresses of its sinks."""
        sinks = self.find_sinks()
        self.each(self._drivers, lambda driver: driver.warm_up())
        return sinks

    def versions(self) -> tuple[str, ...]:
        """What each engine says it serves; empty when it has no name for it."""
        return tuple(self.each(self._engines, lambda each: each.weight_version()))

    def _find_again(self, driver: Driver[EngineT]) -> None:
        """Find the sinks of an engine that was healthy in an update before; if that fails, once more when it serves."""
        try:
            driver.find()
        except EngineError:
            driver.engine.wait(self._patience)
            driver.find()

    def _find_drivers(self) -> None:
        if not self._drivers:
            found = self.each(self._engines, self._driver_for)
            self._drivers = found

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

        return self.each(drivers, go_on)

    def each(self, things: Sequence[Thing], act: Callable[[Thing], Found]) -> list[Found]:
        """Do it with all at once, and wait for all, before an error of one is raised."""
        futures = [self._threads.submit(act, thing) for thing in things]
        wait(futures)
        return [future.result() for future in futures]

    def close(self) -> None:
        """Let go of them; they serve on what they serve."""
        self._claims.close()
        for engine in self._engines:
            engine.close()
        self._threads.shutdown()


def _serve(driver: Driver[Any], version: str) -> str:
    """Have a driver's engine serve ``version``. Returns the problem, if there was one."""
    try:
        return driver.serve(version)
    except Exception as error:
        return f"{driver.engine.name} has {version} and may not serve it: {in_words(error)}"


@contextmanager
def step(steps: dict[str, float], name: str) -> Iterator[None]:
    """Note how long a step takes, beside what it took before."""
    started = time.monotonic()
    try:
        yield
    finally:
        steps[name] = steps.get(name, 0.0) + time.monotonic() - started
