"""Does what one host does in :mod:`benchmarks.sim_check`; lines on its standard input drive it."""

from __future__ import annotations

import argparse
import socket
import sys
import time

import msgspec
import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport_torch import attach

TENSOR_BYTES = 256 << 10
WARM_BYTES, PROBE_BYTES = 1 << 20, 6 << 20
"""A shaped link lets some bytes pass at once, so the clock starts when so many have arrived."""
PORT = 29_777


def names(mib: int) -> list[str]:
    return [f"w{number:05}" for number in range((mib << 20) // TENSOR_BYTES)]


def serve(mib: int, address: str, config: Config) -> None:
    """Be an engine; on every line say whether each of its tensors has the value of that line."""
    module = torch.nn.Module()
    for name in names(mib):
        module.register_buffer(name, torch.zeros(TENSOR_BYTES, dtype=torch.uint8))
    with attach(module, f"tcp://{address}:0", config=config, version="zero") as attachment:
        print(attachment.address, flush=True)
        for line in sys.stdin:
            print(all(bool((tensor == int(line)).all()) for tensor in module.state_dict().values()), flush=True)


def lead(mib: int, sinks: list[str]) -> None:
    """On every line, which names a transport, a ring's depth and values, bring a version of each value to the sinks.

    Say of each how long it ran, and when each sink had all of it.
    """
    for line in sys.stdin:
        transport, depth, *values = line.split()
        told = []
        with ParameterServer(Config.load(transport=transport, ring_depth=int(depth)), rank=0, world_size=1) as server:
            for value in map(int, values):
                tensors = {name: torch.full((TENSOR_BYTES,), value, dtype=torch.uint8) for name in names(mib)}
                server.register(f"step-{value}", tensors=tensors)
                report = server.update(f"step-{value}", sinks)
                assert report is not None
                start = min(event.start for event in report.timeline)
                ends = sorted(report.timeline, key=lambda event: event.end)
                finished = {str(event.rank): event.end - start for event in ends}
                told.append({"run": report.phases["run"], "finished": finished})
                server.unregister(f"step-{value}")
        sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
        sys.stdout.buffer.flush()


def receive(address: str) -> None:
    """Say how many bytes per second arrive by one connection, and when the last one has."""
    with socket.create_server((address, PORT)) as listening:
        print("ready", flush=True)
        connection, _ = listening.accept()
        with connection:
            buffer, arrived, began = bytearray(1 << 16), 0, 0.0
            while got := connection.recv_into(buffer):
                arrived += got
                if not began and arrived >= WARM_BYTES:
                    began, warm = time.perf_counter(), arrived
            ended = time.perf_counter()
            print((arrived - warm) / (ended - began), ended, flush=True)


def send(address: str) -> None:
    """Say when the connection has taken in all that the receiver is to get."""
    with socket.create_connection((address, PORT)) as connection:
        connection.sendall(bytes(PROBE_BYTES))
        print(time.perf_counter(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["serve", "lead", "send", "receive"])
    parser.add_argument("--mib", type=int, default=0)
    parser.add_argument("--address", default="")
    parser.add_argument("--sink", action="append", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.part == "serve":
        serve(given.mib, given.address, Config.load())
    elif given.part == "lead":
        lead(given.mib, given.sink)
    elif given.part == "send":
        send(given.address)
    else:
        receive(given.address)


if __name__ == "__main__":
    main()
