"""Measures how long the host takes to enqueue a broadcast, on an NCCL communicator that may block, and on another.

Two ranks, on two GPUs or, with NCCL 2.30 and NCCL_MULTI_RANK_GPU_ENABLE=1, on one. Broadcasts are of 1 MiB, so that the
device is never what is waited for. Usage: ``python -m benchmarks.nccl_calls``.
"""

from __future__ import annotations

import ctypes
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer

from benchmarks._gpu_worker import ANSWER_SECONDS, Peer
from benchmarks._report import Row, report

NBYTES = 1 << 20
CALLS = 400
AT_ONCE = 8
"""Calls between two waits for the device."""


def measure() -> list[Row]:
    """Both ways."""
    from ckpt_transport_nccl.library import unique_id, version

    gpus = (0, torch.cuda.device_count() - 1)
    identity = unique_id()
    peers = [Peer(_run, rank, gpu, identity) for rank, gpu in enumerate(gpus)]
    took: dict[str, float] = {}
    for what in ("may not block", "may block"):
        for peer in peers:
            peer.ask(what)
        took[what] = max(float(peer.answer()) for peer in peers)
    for peer in peers:
        peer.stop()
    detail = (
        f"{took['may block'] * 1e6:.1f} µs where a call may block, {took['may not block'] * 1e6:.1f} µs where not; "
        f"NCCL {version()}"
    )
    against = "on a communicator that may not block"
    return [Row("enqueuing a broadcast", took["may block"] / took["may not block"], against, "<=0.2", detail)]


def _run(rank: int, gpu: int, identity: bytes, pipe: Connection) -> None:
    from ckpt_transport_nccl.library import Communicator

    torch.cuda.set_device(gpu)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    memory = torch.zeros(NBYTES, dtype=torch.uint8, device="cuda")
    communicator = Communicator(identity, rank, 2, time.monotonic() + ANSWER_SECONDS, lambda: None)
    comms = {"may not block": communicator._meeting, "may block": communicator._comm}
    while (order := pipe.recv()[0]) != "stop":
        _enqueue(comms[order], memory, stream)
        pipe.send(median(_enqueue(comms[order], memory, stream) for _ in range(CALLS)))
    communicator.abort()


def _enqueue(comm: ctypes.c_void_p, memory: torch.Tensor, stream: torch.cuda.Stream) -> float:
    """Seconds of a call, the mean of a few."""
    from ckpt_transport_nccl.library import UINT8, Status, library

    address, state = ctypes.c_void_p(memory.data_ptr()), ctypes.c_int()
    started = time.perf_counter()
    for _ in range(AT_ONCE):
        status = library().ncclBroadcast(
            address, address, ctypes.c_size_t(NBYTES), UINT8, 0, comm, ctypes.c_void_p(stream.cuda_stream)
        )
        while status == Status.IN_PROGRESS:
            library().ncclCommGetAsyncError(comm, ctypes.byref(state))
            status = state.value
        assert status == Status.SUCCESS
    seconds = (time.perf_counter() - started) / AT_ONCE
    stream.synchronize()
    return seconds


def main(json: Annotated[Path | None, typer.Option(help="Write the rows to this file.")] = None) -> None:
    """Measure what the host needs to enqueue a broadcast."""
    report(measure(), json)


if __name__ == "__main__":
    typer.run(main)
