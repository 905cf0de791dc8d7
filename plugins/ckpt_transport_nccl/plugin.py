"""Implements the ``nccl`` transport."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

from ckpt_transport import RegistrationError, TransferTimeout
from ckpt_transport.spi import (
    Availability,
    Buffer,
    CollectiveEndpoint,
    Control,
    Endpoint,
    FanOut,
    Fence,
    Group,
    MemoryKind,
    Poll,
    Reach,
    Traits,
    Transport,
    drain,
    fence_on,
    may_have_devices,
)
from ckpt_transport_nccl.library import POLL_SECONDS, Communicator, library, unique_id

T = TypeVar("T")
ABORT_SECONDS = 2.0
"""Longest wait for a communicator to be gone; it takes milliseconds when nothing else holds it up."""
ENQUEUED = 32
"""Broadcasts that are enqueued and have not ended, at most. A stream takes 64 events of the kind that is waited for
without spinning; whoever enqueues more is blocked until the other members join, and hears nothing meanwhile."""


class NcclEndpoint(CollectiveEndpoint):
    """A communicator and a stream of its own, on which the device orders broadcasts; nobody waits on the host."""

    poll_seconds = 0.001
    stream: torch.cuda.Stream

    def __init__(self, group: Group, control: Control, timeout: float) -> None:
        super().__init__(group, control)
        if self.device.type != "cuda":
            raise RegistrationError(f"'nccl' moves GPU memory, and rank {group.rank} of {group.route} has no GPU")
        self._ending: threading.Thread | None = None
        self._last: Fence | None = None
        self._unended: deque[Fence] = deque()
        deadline = time.monotonic() + timeout
        proposed = control.exchange(unique_id() if group.index == 0 else b"", timeout)
        self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(self.device):
            self._communicator = Communicator(
                proposed[group.ranks[0]], group.index, group.size, deadline, control.receive
            )
            self._connect_members(deadline)

    def allocate(self, nbytes: int) -> Buffer:
        return Buffer(torch.empty(nbytes, dtype=torch.uint8, device=self.device))

    def _describe(self, buffer: Buffer) -> bytes:
        if buffer.tensor.device != self.device:
            raise RegistrationError(f"'nccl' moves memory of {self.device}, and this is on {buffer.tensor.device}")
        return b""

    def _broadcast(self, tensor: torch.Tensor, root: int) -> Poll:
        number = self.group.ranks.index(root)
        with torch.cuda.device(self.device):
            self._communicator.broadcast(tensor.data_ptr(), tensor.numel(), number, self.stream.cuda_stream)
        moved = self._last = fence_on(self.stream)
        self._unended.append(moved)

        def ended() -> bool:
            self._communicator.check()
            return moved.query()

        return ended

    def _enqueued(self) -> Fence | None:
        return self._last

    def _full(self) -> bool:
        while self._unended and self._unended[0].query():
            self._unended.popleft()
        return len(self._unended) >= ENQUEUED

    def _connect_members(self, deadline: float) -> None:
        """Do a first, small broadcast, which waits for the members, so that no later one does.

        Raises:
            TransferTimeout: a member did not take part; the communicator is gone then.
        """
        probe = torch.zeros(1, dtype=torch.uint8, device=self.device)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            enqueued = self._beside(lambda: self._broadcast(probe, self.group.ranks[0]))
            self._wait(lambda: enqueued.done() and enqueued.result()(), deadline)
            left = self._beside(self._communicator.leave_meeting)
            self._wait(left.done, deadline)
            left.result()
        except BaseException:
            self._communicator.abort()
            raise

    def _beside(self, call: Callable[[], T]) -> Future[T]:
        """Make a call that may block, for ever if a member does not do its part, on a thread of its own."""
        made: Future[T] = Future()

        def make() -> None:
            try:
                with torch.cuda.device(self.device):
                    made.set_result(call())
            except Exception as error:
                made.set_exception(error)

        threading.Thread(target=make, name="ckpt-transport-nccl", daemon=True).start()
        return made

    def _wait(self, ended: Poll, deadline: float) -> None:
        while not ended():
            if time.monotonic() > deadline:
                raise TransferTimeout(f"route {self.group.route}: a member took no part in the first broadcast")
            self.control.receive()
            time.sleep(POLL_SECONDS)

    def _interrupt(self) -> None:
        """Abort beside this thread: it may have to wait for a broadcast of another route, which is aborted next."""
        if self._ending is None:
            self._ending = threading.Thread(target=self._communicator.abort, name="ckpt-transport-nccl", daemon=True)
            self._ending.start()
        self._ending.join(ABORT_SECONDS)

    def _shut(self) -> None:
        self._interrupt()
        drain(self.stream)


class NcclTransport(Transport):
    """Is the collective transport over NCCL, between GPUs anywhere."""

    name = "nccl"
    traits = Traits(
        reach=Reach.NETWORK,
        sends_from=frozenset({MemoryKind.CUDA}),
        fan_out=FanOut.CONSTANT,
        bandwidth=20e9,
        latency=50e-6,
        one_rank_per_device=os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE") != "1",
    )

    @classmethod
    def probe(cls) -> Availability:
        if not may_have_devices():
            return Availability(False, "no NVIDIA GPU, or a torch without CUDA", "use the 'gloo' transport")
        try:
            library()
        except OSError as error:
            return Availability(False, f"NCCL cannot be loaded: {error}", "install torch with CUDA from its own index")
        return Availability(True)

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        return NcclEndpoint(group, control, timeout)
