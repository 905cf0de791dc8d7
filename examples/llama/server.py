"""One tensor-parallel worker of the inference server: ``python -m examples.llama.server``. Rank 0 has the HTTP front.

The workers get the same requests in the same order from rank 0, and end when their standard input does.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from ckpt_transport_torch import attach
from examples.llama.engine import Engine
from examples.llama.front import Front
from examples.llama.inbox import Inbox
from examples.llama.messages import Compare, Generate, Inspect, Serving, encode
from examples.llama.parallel import TensorParallel

GROUP_TIMEOUT = timedelta(seconds=90)
"""How long a worker waits for another one; more than an update may hold it."""
TICK = 1.0
"""How often idle workers hear from rank 0, in seconds."""
MOST_THREADS = 4
GRACE = 10.0
"""How long a worker may take to end when it should, in seconds."""


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="the checkpoint to start with")
    parser.add_argument("--version", required=True, help="its name")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--world-size", type=int, required=True)
    parser.add_argument("--rendezvous", type=Path, required=True, help="a file that is not there yet, where ranks meet")
    arguments = parser.parse_args()

    over = threading.Event()
    threading.Thread(target=_end_with_standard_input, args=(over,), daemon=True).start()
    rank, size = arguments.rank, arguments.world_size
    torch.set_num_threads(min(max(1, (os.cpu_count() or 1) // size), MOST_THREADS))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meeting = f"file://{arguments.rendezvous}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=GROUP_TIMEOUT)
    try:
        _serve(Engine(arguments.directory, TensorParallel(rank, size)), arguments.version, over)
    finally:
        dist.destroy_process_group()


def _serve(engine: Engine, version: str, over: threading.Event) -> None:
    """Make the engine updatable and serve; when it breaks, say so to all who ask until it is over."""
    inbox, group = Inbox(), engine.group
    label = f"worker {group.rank}"
    with attach(engine.model, loader=engine.load, engine="demo", version=version, label=label) as serving:
        engine.serve_version(lambda: serving.version)
        sinks = group.gather_objects(serving.address)
        if group.rank == 0:
            front = Front(inbox)
            threading.Thread(target=front.serve_forever, daemon=True).start()
            print(encode(Serving(front.server_port, tuple(sinks))).decode(), flush=True)
        try:
            while _step(engine, inbox, over):
                pass
        except RuntimeError as error:
            inbox.close(f"a worker is gone: {error}")
            over.wait()
            raise


def _step(engine: Engine, inbox: Inbox, over: threading.Event) -> bool:
    """Take in what rank 0 was asked, then compute a token of every request; False when it is time to stop."""
    group = engine.group
    asked = None
    if group.rank == 0 and not over.is_set():
        asked = inbox.take(0 if engine.busy else TICK)
    asked = group.broadcast(asked)
    if asked is None:
        return False
    for number, request in asked:
        match request:
            case Generate():
                refused = engine.admit(number, request)
                if refused is not None:
                    inbox.answer(number, [refused])
            case Compare():
                inbox.answer(number, group.gather_objects(engine.compare(request)))
            case Inspect():
                inbox.answer(number, group.gather_objects(engine.inspect()))
    for number, generated in engine.step():
        inbox.answer(number, [generated])
    return True


def _end_with_standard_input(over: threading.Event) -> None:
    """A worker that cannot end by itself is ended, so that none outlives those who started it."""
    sys.stdin.buffer.read()
    over.set()
    time.sleep(GRACE)
    os._exit(1)


if __name__ == "__main__":
    main()
