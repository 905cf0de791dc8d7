"""What one rank does about digests stands here step by step; :mod:`ckpt_transport.execution.digests` does it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ckpt_transport.memory import NO_PARTS, Along, Fence, PartialCopy, Parts, Runs
from ckpt_transport.planning import Bucket


class Digests:
    """What one rank does about the digests of one round: nothing, where nobody compares them.

    Driven by the pump, but for what says otherwise.
    """

    def filled(self, bucket: int, slot: torch.Tensor) -> Fence | None:
        """A bucket of this rank's has been put into ``slot``, or will have been in the order of the current stream.

        Called by any thread. Returns the end of reading it, if that goes on beside the current stream.
        """
        return None

    def look(self, bucket: Bucket, runs: Runs, part: PartialCopy | None = None) -> None:
        """The engine is given these bytes, now or in the order of the current stream.

        Only the first call counts that gives all that is compared. Called by the thread that applies.

        Args:
            bucket: whose bytes they are.
            runs: where they are.
            part: what of it is there; None for all.
        """

    def along(self, bucket: Bucket, runs: Runs) -> Along | None:
        """As :meth:`look`, of memory of the host that the engine reads now; it calls the result for what it reads.

        None where nothing is left to do of that.
        """
        self.look(bucket, runs)
        return None

    def compared(self, bucket: Bucket) -> Parts:
        """The parts of a bucket that :meth:`landed` reads, ascending. The same object each time."""
        return NO_PARTS

    def landed(self, bucket: Bucket, parts: Runs) -> None:
        """What is :meth:`compared` of a bucket lies where the engine has it, on the host, and is read now.

        Called by the thread that applies: those that compute beside it would keep others from the next bucket.
        """

    def read(self, bucket: Bucket, runs: Runs, end: Fence | None) -> Fence | None:
        """The end of reading a bucket, here and by the engine, which has read it by ``end``."""
        return end

    def admits(self, number: int, runs: Runs) -> bool:
        """Whether a bucket that has arrived may be given to the engine. Asked again until it may.

        Raises: as :meth:`advance`.
        """
        return True

    def turn(self) -> None:
        """The pump has gone round: do what cannot wait for :meth:`advance`."""

    def advance(self) -> None:
        """Say what there is to say, compare what there is to compare. Called now and then.

        Raises:
            TransferError: the bytes of a bucket are not the owner's.
        """

    def finish(self, watch: Callable[[], None], idle: Callable[[float], object]) -> None:
        """Do all that is left.

        Args:
            watch: called often; raises to end the wait.
            idle: waits up to that many seconds, or until a message arrives.

        Raises: as :meth:`advance` and ``watch``.
        """

    def close(self) -> None:
        """Stop. No bytes are read any more when this returns. Idempotent."""
