"""Runs the processes of the GPU benchmark: engines' workers, and checkpoint-engine's parameter server beside them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, ClassVar, Self

import torch

from benchmarks._models import Shapes, Weights, tensors
from benchmarks._trace import Profiler
from ckpt_transport_torch import Loader, attach
from tests.support.ports import free_port

context = multiprocessing.get_context("spawn")
ANSWER_SECONDS = 400
RING_DEPTH = 4


class Peer:
    """A process that does what it is asked, one order after the other."""

    daemon: ClassVar[bool] = True
    """Whether it may have no processes of its own, and ends with this one."""

    def __init__(self, target: Any, *arguments: Any) -> None:
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(*arguments, theirs), daemon=self.daemon)
        self._process.start()

    def ask(self, *order: Any) -> None:
        self._pipe.send(order)

    def answer(self) -> Any:
        if not self._pipe.poll(ANSWER_SECONDS):
            raise TimeoutError("a process of the benchmark does not answer")
        return self._pipe.recv()

    def call(self, *order: Any) -> Any:
        self.ask(*order)
        return self.answer()

    def let_go(self) -> None:
        """Tell it to end, if it still listens."""
        with contextlib.suppress(OSError):
            self.ask("stop")

    def wait(self) -> None:
        """Until it has ended, a minute at most."""
        self._process.join(60)

    def stop(self) -> None:
        self.let_go()
        self.wait()


class ParentPeer(Peer):
    """One that may have processes of its own; it is to be stopped."""

    daemon = False

    def wait(self) -> None:
        super().wait()
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextlib.contextmanager
def peers(calls: Iterable[Sequence[Any]]) -> Iterator[list[Peer]]:
    """A process for each target and its arguments, until the end of the context."""
    started: list[Peer] = []
    try:
        for target, *arguments in calls:
            started.append(Peer(target, *arguments))
        yield started
    finally:
        for peer in started:
            peer.let_go()
        for peer in started:
            peer.wait()


def run_worker(shapes: Shapes, device: str, pipe: Connection) -> None:
    """An engine's worker: it copies what arrives into its parameters."""
    if device != "cpu":
        torch.cuda.set_device(device)
    module = Weights(shapes, torch.device(device))
    parameters = dict(module.named_parameters())

    def copy(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in weights:
            parameters[name].copy_(tensor)

    with attach(module) as attachment:
        pipe.send(attachment.address)
        serve_orders(pipe, module.wrong, copy)


def run_worker_alone(shapes: Shapes, device: str, pipe: Connection) -> None:
    """The same, of a worker that sees no GPU but its own, as many schedulers start them."""
    name, _, number = device.partition(":")
    if number:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[int(number)] if any(visible) else number
        device = f"{name}:0"
    run_worker(shapes, device, pipe)


def serve_orders(pipe: Connection, wrong: Callable[[int], list[str]], load: Loader) -> None:
    """What a worker is told to do until it is stopped.

    Args:
        pipe: on which it hears it.
        wrong: finds the names of weights that are not those of a version.
        load: takes weights from checkpoint-engine.
    """
    import zmq

    zmq_context, profiler = zmq.Context(), Profiler()
    while (order := pipe.recv())[0] != "stop":
        match order:
            case ("wrong", version):
                pipe.send(wrong(version))
            case ("checkpoint-engine", handles):
                from checkpoint_engine.worker import update_weights_from_ipc

                (handle,) = dict(handles).values()
                update_weights_from_ipc(zmq_context, handle, torch.cuda.current_device(), run=load)
                pipe.send("done")
            case ("profile",):
                profiler.start()
                pipe.send("profiling")
            case ("profiled",):
                pipe.send(profiler.stop())


def run_checkpoint_engine(shapes: Shapes, pipe: Connection) -> None:
    """checkpoint-engine's parameter server, one rank, its process group made once."""
    port = free_port(neighbours=1)
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from checkpoint_engine.ps import ParameterServer

    server = ParameterServer(auto_pg=False)
    server.init_process_group()
    while (order := pipe.recv())[0] != "stop":
        started = time.perf_counter()
        match order:
            case ("register", version):
                named = {name: tensor.contiguous() for name, tensor in tensors(shapes, version).items()}
                server.register_checkpoint("weights", named_tensors=named)
                server.gather_metas("weights")
            case ("bucket", gib):
                os.environ["PS_MAX_BUCKET_SIZE_GB"] = str(gib)
            case ("defaults",):
                torch.distributed.destroy_process_group()
                server._auto_pg = True
            case ("update",):
                server.update("weights", lambda handles: pipe.send(handles))
        pipe.send(time.perf_counter() - started)


def run_bare_broadcast(
    rank: int, size: int, gpu: int, nbytes: int, slot_bytes: int, identity: bytes, pipe: Connection
) -> None:
    """NCCL alone: broadcasts of slots, one after the other, until ``nbytes`` have moved."""
    from ckpt_transport_nccl.library import Communicator

    torch.cuda.set_device(gpu)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    slot = torch.zeros(slot_bytes, dtype=torch.uint8, device="cuda")
    deadline = time.monotonic() + ANSWER_SECONDS
    communicator = Communicator(identity, rank, size, deadline, lambda: None)
    torch.cuda.synchronize()
    pipe.send("ready")
    while pipe.recv()[0] != "stop":
        started = time.perf_counter()
        for _ in range(-(-nbytes // slot_bytes)):
            communicator.broadcast(slot.data_ptr(), slot_bytes, 0, stream.cuda_stream)
        stream.synchronize()
        pipe.send(time.perf_counter() - started)
    communicator.abort()


def run_broadcast_with_copies(
    rank: int, size: int, gpu: int, nbytes: int, slot_bytes: int, identity: bytes, pipe: Connection
) -> None:
    """The same through a ring of slots that the first rank copies to and the others copy from, on a stream beside."""
    from ckpt_transport_nccl.library import Communicator

    torch.cuda.set_device(gpu)
    stream, copying = torch.cuda.Stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    slots, weights = (
        [torch.zeros(slot_bytes, dtype=torch.uint8, device="cuda") for _ in range(RING_DEPTH)] for _ in range(2)
    )
    moved, copied = ([torch.cuda.Event() for _ in range(RING_DEPTH)] for _ in range(2))  # type: ignore[no-untyped-call]
    deadline = time.monotonic() + ANSWER_SECONDS
    communicator = Communicator(identity, rank, size, deadline, lambda: None)

    def copy(number: int) -> None:
        with torch.cuda.stream(copying):
            copying.wait_event(moved[number])
            to, of = (slots, weights) if rank == 0 else (weights, slots)
            to[number].copy_(of[number])
            copied[number].record(copying)

    torch.cuda.synchronize()
    pipe.send("ready")
    while pipe.recv()[0] != "stop":
        started = time.perf_counter()
        for turn in range(-(-nbytes // slot_bytes)):
            number = turn % RING_DEPTH
            if rank == 0:
                copy(number)
            stream.wait_event(copied[number])
            communicator.broadcast(slots[number].data_ptr(), slot_bytes, 0, stream.cuda_stream)
            moved[number].record(stream)
            if rank != 0:
                copy(number)
        torch.cuda.synchronize()
        pipe.send(time.perf_counter() - started)
    communicator.abort()


def host_to_device(pool: torch.Tensor, slot_bytes: int) -> float:
    """Seconds for all of pinned ``pool``, in pieces of a slot."""
    slot = torch.empty(slot_bytes, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    started = time.perf_counter()
    for piece in torch.split(pool, slot_bytes):
        slot[: piece.numel()].copy_(piece, non_blocking=True)
    torch.cuda.synchronize()
    return time.perf_counter() - started


class GpuMemory:
    """The most GPU memory that anybody used beyond what was in use at the start, while the context lasts."""

    def __enter__(self) -> Self:
        torch.zeros(1, device="cuda")
        self._seen: list[int] = []
        self._before = self._used()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    @property
    def extra(self) -> int:
        return max(self._seen, default=0)

    def later(self) -> int:
        """The most until now; what is asked for later is the most from now on, beyond the same start."""
        most, self._seen = self.extra, []
        return most

    def _watch(self) -> None:
        while not self._stopping.wait(0.005):
            self._seen.append(max(self._used() - self._before, 0))

    def _used(self) -> int:
        found = map(torch.cuda.mem_get_info, range(torch.cuda.device_count()))
        return sum(total - free for free, total in found)
