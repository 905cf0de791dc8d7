"""An engine without weights of its own: who has them takes a version from an iterator."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import torch

from ckpt_transport.engine.engine import Engine
from ckpt_transport.engine.loaded_bucket import LoadedBucket
from ckpt_transport.errors import TransferTimeout, UpdateError, UsageError
from ckpt_transport.memory import fence
from ckpt_transport.planning import TensorSpec


class StreamEngine(Engine):
    """Hands a version's tensors to an iterator; for frameworks that load weights from one.

    An update holds until somebody iterates over :meth:`receive`. The iterator ends when the update is committed. It
    raises when the update fails, so that whoever loads in place knows that its weights may be a mix.

    Args:
        label: what people call this sink.
        device: where tensors arrive.
    """

    whole_tensors = True

    def __init__(self, label: str, device: torch.device | str = "cpu") -> None:
        self.label, self.device = label, torch.device(device)
        self._changed = threading.Condition()
        self._receiving = False
        self._over = True
        """Whether what is received has ended, by a commit or by ``_failure``."""
        self._failure: UpdateError | None = None
        self._bucket: LoadedBucket | None = None
        """What the receiver reads now."""
        self._updating = self._finished = False
        self._held_since = 0.0

    def receive(self, timeout: float) -> Generator[tuple[str, torch.Tensor]]:
        """Take one version: pairs of name and tensor, as they arrive. A tensor is valid until the next is asked for.

        On a GPU, what is on the current stream by then may still read it.

        Args:
            timeout: how many seconds to wait for the first tensors, and then for each of the next.

        Raises:
            TransferTimeout: nothing came in that time.
            UpdateError: the update has failed; what came is a part of the version.
            UsageError: another iterator receives.
        """
        with self._changed:
            if self._receiving:
                raise UsageError(f"another iterator receives from {self.label}; close it first")
            self._receiving, self._over, self._failure = True, False, None
            self._changed.notify_all()
        try:
            while (bucket := self._next(timeout)) is not None:
                for piece in bucket:
                    yield piece.spec.name, piece.tensor()
                if (read := fence(self.device)) is not None:
                    read.synchronize()
                with self._changed:
                    self._bucket = None
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._receiving = False
                self._changed.notify_all()

    def _next(self, timeout: float) -> LoadedBucket | None:
        """The next bucket; None after the commit."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._over or self._bucket is not None, timeout):
                raise TransferTimeout(f"no tensors came to {self.label} within {timeout:g} s; does a source send any?")
            if self._failure is not None:
                raise self._failure
            return None if self._over else self._bucket

    def begin(self) -> None:
        self._updating, self._finished = True, False

    def expects(self) -> tuple[TensorSpec, ...] | None:
        return None

    def hold(self) -> int:
        self._held_since = time.monotonic()
        return 0

    def advance(self, forwards: int, timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._receiving and not self._over, timeout):
                raise TimeoutError(f"nobody receives from {self.label}")

    def load(self, pieces: LoadedBucket) -> None:
        with self._changed:
            self._bucket = pieces
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._bucket is None or self._over or not self._receiving)
            left, self._bucket = self._bucket is not None, None
            if left:
                raise self._failure or UpdateError(f"who received from {self.label} has left before the end")

    def finish(self) -> None:
        self._finished = True

    def resume(self) -> float:
        held, self._held_since = self._held_since and time.monotonic() - self._held_since, 0.0
        self._end(None if self._finished else UpdateError(f"the update of {self.label} was given up"))
        return held

    def taint(self, reason: str) -> None:
        self._held_since = 0.0
        self._end(UpdateError(f"{self.label} was given a part of a version: {reason}"))

    def _end(self, failure: UpdateError | None) -> None:
        with self._changed:
            if self._updating:
                self._updating, self._over, self._failure = False, True, failure
                self._changed.notify_all()
