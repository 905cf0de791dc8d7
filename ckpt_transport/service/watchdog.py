"""A watchdog looks after the thread of a listener that a library, a loader or an engine keeps.

A sink's thread calls into other people's code: a transport's library, a loader, an engine. When such a call does not
return, the thread cannot hear that its update was aborted, cannot let the engine serve, and answers nobody. A
:class:`Watchdog` does these three from a thread of its own, and nothing else. It costs nothing while buckets move: it
sleeps, and looks a few times a second whether the member's thread looks around.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ckpt_transport.transports.interface import Endpoint, Transport

TICK_SECONDS = 0.2
"""How often it looks."""
UNSEEN_SECONDS = 1.0
"""A thread that has looked around so lately is not stuck."""
HELPERS = ("ckpt-transport-pump", "ckpt-transport-fence", "ckpt-transport-fill")
"""Threads in which a call may hang that the member's thread waits for."""
logger = logging.getLogger(__name__)


class Watchdog:
    """Ends an update in place of the member's thread when that does not.

    Args:
        patience: seconds that the thread gets to end an update by itself.
        due: why the update has to end; empty while it may go on. Called when the thread has not looked around lately.
        give_up: ends the update, for the given reason, and says where the thread is stuck.
        stand_in: answers what has arrived. Called while the thread is stuck.

    Attributes:
        stuck: which call has not returned since the update was given up; empty when none.
    """

    def __init__(
        self,
        patience: float,
        due: Callable[[], str],
        give_up: Callable[[str], None],
        stand_in: Callable[[], None],
    ) -> None:
        self._patience, self._due, self._give_up, self._stand_in = patience, due, give_up, stand_in
        self.stuck = ""
        self._lock = threading.RLock()
        self._at_work = threading.Event()
        self._stopped = threading.Event()
        self._seen_at = 0.0
        self._due_since: float | None = None
        self._worker = 0
        self._thread: threading.Thread | None = None

    def looked(self) -> None:
        """The member's thread, or one that works for it, has looked around."""
        self._seen_at = time.monotonic()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look after this thread while the block runs."""
        with self._lock:
            if self._thread is None:
                self._stopped.clear()
                self._thread = threading.Thread(target=self._run, name="ckpt-transport-watchdog", daemon=True)
                self._thread.start()
            self._worker, self._due_since = threading.get_ident(), None
            self.looked()
            self._at_work.set()
        try:
            yield
        finally:
            with self._lock:
                self._at_work.clear()

    def came_back(self) -> bool:
        """Whether the update was given up while this thread was stuck; it is not any more."""
        with self._lock:
            was, self.stuck = self.stuck, ""
            return bool(was)

    def stop(self) -> None:
        """End the thread; :meth:`watching` begins another one."""
        self._stopped.set()
        self._at_work.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None

    def _run(self) -> None:
        while not self._stopped.wait(TICK_SECONDS):
            self._at_work.wait()
            with self._lock:
                if self._at_work.is_set() and not self._stopped.is_set():
                    self._look_and_go_on()

    def _look_and_go_on(self) -> None:
        """Whatever an engine or a message does, this thread is needed again."""
        try:
            self._look()
        except Exception:
            logger.exception("a watchdog goes on after an error")

    def _look(self) -> None:
        now = time.monotonic()
        if self.stuck:
            self._stand_in()
        elif now - self._seen_at < UNSEEN_SECONDS or not (reason := self._due()):
            self._due_since = None
        elif self._due_since is None:
            self._due_since = now
        elif now - self._due_since > self._patience:
            self.stuck = self.where()
            self._give_up(reason)

    def where(self) -> str:
        """What the member's thread is doing, and those that may work for it."""
        frames = sys._current_frames()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        helpers = [ident for ident, name in names.items() if name.startswith(HELPERS) and ident is not None]
        places = [
            f"{_place(frames[ident])} (thread {names.get(ident, 'of the caller')})"
            for ident in (self._worker, *helpers)
            if ident in frames
        ]
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - (time.monotonic() - self._seen_at)))
        return f"a call has not returned since {since}: {', '.join(places)}"


def _place(frame: FrameType) -> str:
    """The innermost call that is not Python's own waiting."""
    while frame.f_back is not None and frame.f_code.co_filename.endswith(("threading.py", "queue.py")):
        frame = frame.f_back
    return f"{_transport(frame)}{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def _transport(frame: FrameType | None) -> str:
    """Whose call it is, where it is a transport's; empty elsewhere."""
    while frame is not None:
        match frame.f_locals.get("self"):
            case Transport() as transport:
                return f"{frame.f_code.co_name} of transport '{transport.name}' at "
            case Endpoint() as endpoint:
                name = endpoint.group.route.rpartition("-")[0]
                return f"{frame.f_code.co_name} of an endpoint of transport '{name}' at "
        frame = frame.f_back
    return ""
