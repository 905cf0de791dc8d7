"""A tensor-parallel worker process. Rank 0 gets requests from the server and hands them to the others."""

from __future__ import annotations

import argparse
import os
import select
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from ckpt_transport_torch import attach
from examples.llama.engine import Engine
from examples.llama.parallel import TensorParallel
from examples.llama.protocol import (
    Answered,
    Channel,
    ChannelClosed,
    Compare,
    Generate,
    Inspect,
    Numbered,
    Ready,
    Request,
    Stop,
    encode,
)

GROUP_TIMEOUT = timedelta(seconds=90)
"""How long a worker waits for another one; more than an update may hold it."""
TICK = 1.0
"""How often idle workers hear from rank 0."""
MOST_THREADS = 4
GRACE = 10.0
"""How long a worker may take to end after its server is gone."""


def main() -> None:
    """Serve until told to stop, or until the server is gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--world-size", type=int, required=True)
    parser.add_argument("--rendezvous", type=Path, required=True)
    parser.add_argument("--channel", type=int, required=True, help="file descriptor of the socket to the server")
    arguments = parser.parse_args()

    torch.set_num_threads(min(max(1, (os.cpu_count() or 1) // arguments.world_size), MOST_THREADS))
    channel = Channel(socket.socket(fileno=arguments.channel))
    threading.Thread(target=_end_with_the_server, args=(channel.socket,), daemon=True).start()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{arguments.rendezvous}",
        rank=arguments.rank,
        world_size=arguments.world_size,
        timeout=GROUP_TIMEOUT,
    )
    group = TensorParallel(arguments.rank, arguments.world_size)
    try:
        _serve(Engine(arguments.directory, group), channel, arguments.version)
    finally:
        dist.destroy_process_group()


def _serve(engine: Engine, channel: Channel, version: str) -> None:
    label = f"worker {engine.group.rank}"
    attachment = attach(engine.model, loader=engine.load, engine="demo", version=version, label=label)
    try:
        engine.serve_version(lambda: attachment.version)
        channel.send(Ready(attachment.address))
        while _step(engine, channel):
            pass
    finally:
        attachment.close()


def _step(engine: Engine, channel: Channel) -> bool:
    """Take in what rank 0 has got, then compute a token of every request; False when it is time to stop."""
    group = engine.group
    got = group.broadcast(_received(channel, TICK if not engine.busy else 0) if group.rank == 0 else b"")
    for number, request in _decode(got):
        match request:
            case Stop():
                return False
            case Generate():
                refused = engine.admit(number, request)
                replies = [encode(refused)] if refused is not None else []
            case Compare():
                replies = group.gather_bytes(encode(engine.compare(request)))
            case Inspect():
                replies = group.gather_bytes(encode(engine.inspect()))
        if replies and group.rank == 0:
            channel.send({"number": number, "replies": [msgspec.Raw(reply) for reply in replies]})
    for number, generated in engine.step():
        if group.rank == 0:
            channel.send(Answered(number, (generated,)))
    return True


def _received(channel: Channel, patience: float) -> bytes:
    """The requests that have come, as one message to the other workers; waits for the first up to ``patience``."""
    lines: list[bytes] = []
    try:
        while (line := channel.receive(0 if lines else patience)) is not None:
            lines.append(line)
    except ChannelClosed:
        lines = [encode(Numbered(0, Stop()))]
    return b"[" + b",".join(lines) + b"]"


def _decode(got: bytes) -> list[tuple[int, Request]]:
    return [(numbered.number, numbered.request) for numbered in msgspec.json.decode(got, type=list[Numbered])]


def _end_with_the_server(connection: socket.socket) -> None:
    """A worker that cannot end by itself is ended, so that none outlives its server."""
    poll = select.poll()
    poll.register(connection, 0)
    poll.poll()
    time.sleep(GRACE)
    os._exit(1)


if __name__ == "__main__":
    main()
