"""A thread says "alive" while the participant's own thread is busy moving weights.

It sends a message, or touches the file of its mailbox's socket, where whoever has to know sees that.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from queue import Empty, SimpleQueue

from ckpt_transport.control.connections import OutgoingConnections
from ckpt_transport.control.sockets import Sockets
from ckpt_transport.control.touches import is_file
from ckpt_transport.errors import ControlError


class Heart:
    """Sends one ready-made message to each of a set of addresses, every ``interval`` seconds, and to a new one at once.

    Between mailboxes at UNIX sockets nothing is sent while those who watch see that the socket's file is touched.

    A process that is stopped, or whose threads all wait for one that keeps Python's lock, sends none. It looks dead to
    its peers then, and :meth:`silence` tells it so.

    Args:
        sockets: of the mailbox.
        interval: seconds from one to the next.
        patience: seconds of silence after which peers give up.
    """

    def __init__(self, sockets: Sockets, interval: float, patience: float) -> None:
        self._context, self._secret, self._beat = sockets.context, sockets.secret, list(sockets.sign_of_life())
        self._interval, self._patience = interval, patience
        self._file, self._known, self._seen = sockets.file, True, False
        """Whether all targets know the file since the last beat, and whether they see this beat at it."""
        self._beat_at = 0.0
        self._silence, self._silent_until = 0.0, 0.0
        self._targets: frozenset[str] = frozenset()
        self._new: deque[str] = deque()
        self._wake: SimpleQueue[None] = SimpleQueue()
        """An interrupt splits no call of it, as it may one of an event."""
        self._stopped = False
        self._beating = threading.Lock()
        """Held while a thread has connections. An interrupt may leave one that has not begun yet, and does later."""
        self._thread: threading.Thread | None = None

    def beat_to(self, address: str) -> None:
        if address not in self._targets or self._thread is None or not self._thread.is_alive():
            self._begin([address])

    def beat_anew_to(self, addresses: Iterable[str]) -> None:
        """Beat to those who know another file at this address. The first beat is a message, which tells them so."""
        if new := list(addresses):
            self._known = False
            self._begin(new)

    def _begin(self, addresses: Sequence[str]) -> None:
        self._targets |= frozenset(addresses)
        self._new.extend(addresses)
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._run, name="ckpt-transport-heart", daemon=True)
            self._thread = thread
            thread.start()
        self._wake.put(None)

    def stop_beating_to(self, address: str) -> None:
        self._targets -= {address}

    def silence(self, since: float) -> float:
        """For how many seconds peers have heard nothing, where that is longer than they wait; else 0.

        Args:
            since: silence that ended before is not counted; seconds of the monotonic clock.
        """
        now = time.monotonic()
        if self._targets and self._beat_at and now - self._beat_at > self._patience:
            return now - self._beat_at
        return self._silence if self._silent_until > since else 0.0

    def awake_for(self) -> float:
        """For how many seconds this process has gone on since it was silent for too long; infinite if it never was."""
        now = time.monotonic()
        if self._targets and self._beat_at and now - self._beat_at > self._patience:
            return 0.0
        return now - self._silent_until if self._silent_until else math.inf

    def stop(self) -> None:
        self._stopped = True
        self._wake.put(None)
        with self._beating:
            if self._thread is None or not self._thread.is_alive():
                return
        self._thread.join()

    def _run(self) -> None:
        with self._beating:
            if not self._stopped:
                self._beat_on()

    def _beat_on(self) -> None:
        connections = OutgoingConnections(self._context, self._secret)
        connected: set[str] = set()
        while not self._stopped and self._thread is threading.current_thread():
            self._note_silence()
            self._new.clear()
            self._touch()
            targets = self._targets
            for address in connected - targets:
                connections.close_one(address)
            connected &= targets
            for address in targets:
                self._beat_once(connections, address, connected)
            self._greet_until(self._next_beat(), connections, connected)
        connections.close()

    def _next_beat(self) -> float:
        """When all are due again. Hearts of a host with one interval beat together, as they have one clock: who hears
        many is woken once for all of them, and not by each."""
        return (time.monotonic() // self._interval + 1) * self._interval

    def _greet_until(self, end: float, connections: OutgoingConnections, connected: set[str]) -> None:
        """Send to those that are new, until all are due again. Who comes costs one message, however many there are."""
        while not self._stopped and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(Empty):
                self._wake.get(timeout=left)
            if self._new:
                self._touch()
            while self._new:
                self._beat_once(connections, self._new.popleft(), connected)

    def _touch(self) -> None:
        """Touch the file while somebody is beaten to: a touch is seen by all, those who were parted from, too."""
        if self._targets:
            touched = self._file.touch()
            self._seen, self._known = touched and self._known, touched

    def _beat_once(self, connections: OutgoingConnections, address: str, connected: set[str]) -> None:
        if self._seen and is_file(address):
            return
        try:
            connections.connect(address)
            connected.add(address)
            connections.send(address, self._beat)
        except ControlError:
            self._known = False  # it is told with the next beat

    def _note_silence(self) -> None:
        now = time.monotonic()
        if self._beat_at and now - self._beat_at > self._patience:
            self._silence, self._silent_until = now - self._beat_at, now
        self._beat_at = now
