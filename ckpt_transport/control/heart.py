"""A thread says "alive" while the participant's own thread is busy moving weights."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence

import zmq

from ckpt_transport.control import addresses
from ckpt_transport.control.messages import MAX_FRAME
from ckpt_transport.control.security import Secret
from ckpt_transport.errors import ControlError

SEND_HIGH_WATER = 100_000


class Heart:
    """Sends one ready-made message to each of a set of addresses, every ``interval`` seconds.

    A process that is stopped, or whose threads all wait for one that keeps Python's lock, sends none. It looks dead to
    its peers then, and :meth:`silence` tells it so.

    Args:
        context, secret: of the mailbox.
        beat: the message, in frames.
        interval: seconds from one to the next.
        patience: seconds of silence after which peers give up.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        secret: Secret | None,
        beat: Sequence[bytes],
        interval: float,
        patience: float,
    ) -> None:
        self._context, self._secret, self._beat, self._interval = context, secret, list(beat), interval
        self._patience = patience
        self._beat_at = 0.0
        self._silence, self._silent_until = 0.0, 0.0
        self._targets: frozenset[str] = frozenset()
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def connect(self, address: str) -> zmq.Socket[bytes]:
        """A socket to the mailbox at ``address``.

        Raises:
            ControlError: there can be none: the address is no place to connect to, or descriptors have run out.
        """
        try:
            dealer: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        except zmq.ZMQError as error:
            raise ControlError(f"cannot connect to {address}: {error}") from error
        dealer.sndhwm, dealer.maxmsgsize = SEND_HIGH_WATER, MAX_FRAME
        if self._secret is not None and address.startswith("tcp"):
            self._secret.present(dealer)
        dealer.ipv6 = addresses.is_ipv6(address)
        try:
            dealer.connect(address)
        except zmq.ZMQError as error:
            dealer.close(0)
            raise ControlError(f"cannot connect to {address}: {error}") from error
        return dealer

    def beat_to(self, address: str) -> None:
        self._targets |= {address}
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ckpt-transport-heart", daemon=True)
            self._thread.start()
        self._wake.set()

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

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        dealers: dict[str, zmq.Socket[bytes]] = {}
        while not self._stopped:
            self._note_silence()
            for address in self._targets - dealers.keys():
                with contextlib.suppress(ControlError):  # tried again with the next beat
                    dealers[address] = self.connect(address)
            for address in dealers.keys() - self._targets:
                dealers.pop(address).close(0)
            for dealer in dealers.values():
                with contextlib.suppress(zmq.Again):  # that peer has read nothing for hours
                    dealer.send_multipart(self._beat, zmq.NOBLOCK)
            self._wake.wait(self._interval)
            self._wake.clear()
        for dealer in dealers.values():
            dealer.close(0)

    def _note_silence(self) -> None:
        now = time.monotonic()
        if self._beat_at and now - self._beat_at > self._patience:
            self._silence, self._silent_until = now - self._beat_at, now
        self._beat_at = now
