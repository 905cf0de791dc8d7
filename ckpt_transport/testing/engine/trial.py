"""A trial is one engine in one check: versions are brought to it, and requests are made meanwhile."""

from __future__ import annotations

import threading
import time
import unittest
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from ckpt_transport.config import Config
from ckpt_transport.errors import CkptTransportError
from ckpt_transport.reasons import named_reason
from ckpt_transport.service.parameter_server import ParameterServer
from ckpt_transport.service.query import ask_version
from ckpt_transport.testing.engine.under_test import EngineUnderTest
from ckpt_transport.testing.side_channel import Broken
from ckpt_transport.update.progress import Progress
from ckpt_transport.update.report import Report

MakeEngine = Callable[[Config], EngineUnderTest]
"""Makes an engine under test, as its class does. Its sinks have these settings."""
Found = TypeVar("Found")
VERSIONS = (1, 2)
MISFIT = "misfit"
TICK_SECONDS = 0.01


class NotApplicableError(unittest.SkipTest):
    """A check cannot be made of this engine; says why. Test frameworks take it for a test that is skipped."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Says how long a check waits for what must, and must not, happen.

    Attributes:
        must: seconds in which whatever must happen does. A failure takes that long, and nothing else does.
        must_not: seconds in which what must not happen has not. A check passes after that long.
    """

    must: float = 60.0
    must_not: float = 0.3


class StopUpdateError(BaseException):
    """Interrupts an update where the check wants it to fail."""


class Call(Generic[Found]):
    """One call in a thread of its own, as a request that may have to wait.

    Attributes:
        ended: it has returned or raised.
    """

    def __init__(self, call: Callable[[], Found]) -> None:
        self._call = call
        self._found: list[Found] = []
        self.error: BaseException | None = None
        self.ended = threading.Event()
        threading.Thread(target=self._run, name="engine-check", daemon=True).start()

    def _run(self) -> None:
        try:
            self._found.append(self._call())
        except BaseException as error:
            self.error = error
        self.ended.set()

    def result(self, timeout: float, what: str) -> Found:
        """What it has returned.

        Raises:
            Broken: it has not returned within ``timeout`` seconds, or raised; ``what`` says what it is.
        """
        if not self.ended.wait(timeout):
            raise Broken(f"{what} is not answered within {timeout:g} s")
        if self.error is not None:
            raise Broken(f"{what} is refused: {named_reason(self.error)}") from self.error
        return self._found[0]

    @property
    def in_words(self) -> str:
        """What came of it."""
        return f"answered with {self._found[0]}" if self.error is None else f"refused: {self.error}"


class Moments:
    """Calls something at two moments of an update.

    Args:
        server: brings the version.
        moving: called when first bytes have been brought. The update waits for it.
        ready: called when all is ready and only forward passes must still be held.
    """

    def __init__(
        self, server: ParameterServer, moving: Callable[[], None] | None, ready: Callable[[], None] | None
    ) -> None:
        self._server, self._moving, self._ready = server, moving, ready

    @property
    def rank(self) -> int:
        return self._server.rank

    def update(
        self,
        version: str,
        sinks: Sequence[str] | None = None,
        progress: Progress | None = None,
        before_hold: Callable[[], None] | None = None,
    ) -> Report | None:
        """As :meth:`ParameterServer.update`."""

        def moved(done: int, total: int) -> None:
            moving, self._moving = (self._moving, None) if done else (None, self._moving)
            if moving is not None:
                moving()

        def hold() -> None:
            if self._ready is not None:
                self._ready()
            if before_hold is not None:
                before_hold()

        return self._server.update(version, sinks, moved, hold)


class Trial:
    """One engine, and who updates it, until the context ends.

    Args:
        make: makes the engine.
        settings: of its sinks and of who updates it.
        patience: of the check.
    """

    def __init__(self, make: MakeEngine, settings: dict[str, Any], patience: Patience) -> None:
        self.patience, self._settings = patience, settings
        self._stack = ExitStack()
        self._servers: dict[str, ParameterServer] = {}
        self.engine = self._stack.enter_context(make(Config.load(**settings)))
        if self.engine.expected(1) == self.engine.expected(2):
            raise ValueError("both versions answer alike, so nobody could tell one from the other: take other weights")

    def server(self, commit: str, update_timeout: float = 0.0) -> ParameterServer:
        """Who updates, in place or staged; it has both versions, and one that does not fit.

        Args:
            commit: the setting.
            update_timeout: the setting; 0 for what the check has.
        """
        key = f"{commit} {update_timeout}"
        if key not in self._servers:
            changed = {"commit": commit, **({"update_timeout": update_timeout} if update_timeout else {})}
            server = self._stack.enter_context(ParameterServer(Config.load(**{**self._settings, **changed})))
            for version in VERSIONS:
                server.register(f"v{version}", tensors=self.engine.tensors(version))
            server.register(MISFIT, tensors=self.engine.misfit())
            self._servers[key] = server
        return self._servers[key]

    def watched(
        self, commit: str, moving: Callable[[], None] | None = None, ready: Callable[[], None] | None = None
    ) -> Moments:
        """Who updates; see :class:`Moments`."""
        return Moments(self.server(commit), moving, ready)

    def update(
        self,
        version: int,
        commit: str = "in_place",
        *,
        moving: Callable[[], None] | None = None,
        ready: Callable[[], None] | None = None,
    ) -> Report:
        """Bring a version; see :class:`Moments`.

        Raises:
            Broken: it fails.
        """
        try:
            return self.engine.update(self.watched(commit, moving, ready), f"v{version}")
        except CkptTransportError as error:
            raise Broken(f"the update to v{version} fails: {named_reason(error)}") from error

    def stop_update(self, version: int, commit: str, moment: str) -> None:
        """Have an update to ``version`` fail at a moment, which is ``moving`` or ``ready``."""

        def stop() -> None:
            raise StopUpdateError

        with suppress(StopUpdateError):
            self.update(version, commit, **{moment: stop})
            raise Broken("an update that was interrupted has come to its end")

    def rollback(self) -> None:
        """Go back to the version before, which was staged."""
        self.engine.rollback(self.server("auto"))

    def needs_staging(self) -> None:
        """See that the engine stages versions, once it has had one of each; it serves version 1 then.

        Raises:
            NotApplicableError: it does not.
        """
        self.update(2, "auto")
        if not self.update(1, "auto").staged:
            raise NotApplicableError("this engine loads in place only")

    def ask(self) -> Call[object]:
        """Make a request, which may have to wait."""
        return Call(self.engine.ask)

    @contextmanager
    def running(self) -> Iterator[Call[object]]:
        """Have a request be in the middle of a forward pass until the block ends.

        Raises:
            NotApplicableError: the engine cannot be asked for that.
        """
        inside, go_on = threading.Event(), threading.Event()

        def act() -> None:
            inside.set()
            go_on.wait(self.patience.must)

        call = Call(lambda: self.engine.ask_meanwhile(act))
        while not inside.wait(TICK_SECONDS):
            if isinstance(call.error, NotImplementedError):
                raise NotApplicableError(str(call.error))
            if call.ended.is_set():
                call.result(0.0, "a request")
                raise Broken("a request has ended, and what it was given to call was not called")
        try:
            yield call
        finally:
            go_on.set()

    def expect(self, version: int, when: str) -> None:
        """See that a request is answered by a version.

        Raises:
            Broken: it is not answered, or otherwise.
        """
        self.compare(self.ask().result(self.patience.must, f"a request {when}"), version, when)

    def compare(self, answer: object, version: int, when: str) -> None:
        """
        Raises:
            Broken: the answer is not that of the version; says whether it is of another one or of none.
        """
        if answer == self.engine.expected(version):
            return
        of = "by no version, so by a mix or by what is no weight"
        if answer in [self.engine.expected(other) for other in VERSIONS]:
            of = f"by version {3 - version}"
        raise Broken(f"a request {when} is answered {of}, and not by version {version}")

    def expect_no_answer(self, asked: Call[object], when: str) -> None:
        """
        Raises:
            Broken: a request that must wait has been answered or refused.
        """
        if asked.ended.wait(self.patience.must_not):
            raise Broken(f"a request {when} is {asked.in_words}")

    def tainted(self) -> list[str]:
        """Why each sink must not serve, for those that must not."""
        told = [ask_version(sink, timeout=self.patience.must) for sink in self.engine.sinks]
        return [each.tainted for each in told if each.tainted]

    def wait_until_tainted(self) -> None:
        """
        Raises:
            Broken: no sink says that it must not serve.
        """
        deadline = time.monotonic() + self.patience.must
        while not self.tainted():
            if time.monotonic() > deadline:
                raise Broken("all sinks say that they may serve what an update has left half written")
            time.sleep(TICK_SECONDS)

    def versions(self) -> set[str]:
        """What the sinks say they serve."""
        return {ask_version(sink, timeout=self.patience.must).version for sink in self.engine.sinks}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Remembered:
    """Calls a function at a moment of an update, which must not raise there, and raises what it raised afterwards."""

    def __init__(self) -> None:
        self._errors: list[Broken] = []

    def __call__(self, act: Callable[[], None]) -> Callable[[], None]:
        def watched() -> None:
            try:
                act()
            except Broken as error:
                self._errors.append(error)

        return watched

    def check(self) -> None:
        """
        Raises:
            Broken: the first one that was raised.
        """
        for error in self._errors:
            raise error


@contextmanager
def remembered() -> Iterator[Remembered]:
    """What breaks at a moment of an update is raised at the end of the block."""
    found = Remembered()
    yield found
    found.check()
