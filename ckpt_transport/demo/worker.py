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

from ckpt_transport.config import Config
from ckpt_transport.demo.engine import Engine
from ckpt_transport.demo.parallel import TensorParallel
from ckpt_transport.demo.protocol import Channel, ChannelClosed, Ready, Stop, decode_request, encode
from ckpt_transport_torch import attach

GROUP_TIMEOUT = timedelta(seconds=90)
"""How long a worker waits for another one; more than an update may hold it."""
TICK = 1.0
"""How often idle workers hear from rank 0."""
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

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // arguments.world_size))
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
    attachment = attach(engine.model, loader=engine.load, engine="demo", version=version, config=Config.load())
    try:
        engine.serve_version(lambda: attachment.version)
        channel.send(Ready(attachment.address))
        while _step(engine, channel):
            pass
    finally:
        attachment.close()


def _step(engine: Engine, channel: Channel) -> bool:
    """Serve one request, or tell the others that there is none; False after the last."""
    group = engine.group
    line = group.broadcast(_next(channel) if group.rank == 0 else b"")
    if not line:
        return True
    request = decode_request(line)
    if isinstance(request, Stop):
        return False
    replies = group.gather_bytes(encode(engine.handle(request)))
    if group.rank == 0:
        channel.send([msgspec.Raw(reply) for reply in replies])
    return True


def _next(channel: Channel) -> bytes:
    try:
        return channel.receive(TICK) or b""
    except ChannelClosed:
        return encode(Stop())


def _end_with_the_server(connection: socket.socket) -> None:
    """A worker that cannot end by itself is ended, so that none outlives its server."""
    poll = select.poll()
    poll.register(connection, 0)
    poll.poll()
    time.sleep(GRACE)
    os._exit(1)


if __name__ == "__main__":
    main()
