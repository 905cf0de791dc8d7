"""Implements the ``gloo`` transport."""

from __future__ import annotations

import datetime
import re
import threading
from typing import Any

import torch
import torch.distributed as dist

from ckpt_transport import PeerLostError, TransferError, TransferTimeout, TransportError
from ckpt_transport.spi import (
    Availability,
    CollectiveEndpoint,
    Control,
    Endpoint,
    FanOut,
    Group,
    MemoryKind,
    Poll,
    Reach,
    Traits,
    Transport,
)
from ckpt_transport_gloo.rendezvous import ControlStore
from ckpt_transport_gloo.sockets import Connections

ProcessGroupGloo: Any = dist.ProcessGroupGloo
"""Any, because torch's type stubs lack most of it."""

LONGEST = datetime.timedelta(hours=24)
"""How long a broadcast may wait for a peer. Deadlines are the executor's, and an abort ends the connections."""

LONGEST_CONNECT = 8.0
"""Seconds to connect to members that have said where they listen. One that is gone by then cannot be told from one that
is slow, and nothing ends the wait."""

PEERS_NAMED = 8
"""So many ranks are named where one of them is gone."""

LONGEST_CLOSE = 1.0
"""Seconds to wait for gloo's threads to end; one that hangs is left behind, with nothing to read from."""

THREADS = 2
"""Of a process group, each of which carries out one operation at a time."""


class GlooEndpoint(CollectiveEndpoint):
    """Has one process-group object of its own; torch's default group is never touched."""

    poll_seconds = 0.02

    def __init__(self, group: Group, control: Control, timeout: float) -> None:
        super().__init__(group, control)
        self._connections = Connections()
        options = ProcessGroupGloo._Options()
        options._threads = THREADS
        options._timeout = datetime.timedelta(seconds=min(timeout, LONGEST_CONNECT))
        options._devices = [
            ProcessGroupGloo.create_device(hostname="127.0.0.1")
            if group.on_one_host
            else ProcessGroupGloo.create_default_device()
        ]
        store = ControlStore(group, control, timeout)
        try:
            self._processes: Any = ProcessGroupGloo(store, group.index, group.size, options)
        except TransportError:
            raise
        except RuntimeError as error:
            if store.failure is not None:
                raise store.failure from error
            raise TransferTimeout(f"gloo could not connect route {group.route}: {first_line(error)}") from error
        self._processes._set_default_timeout(LONGEST)
        ports = control.exchange(self._connections.listening_port().to_bytes(2), timeout)
        self._connections.find({int.from_bytes(port) for port in ports.values()})

    def _broadcast(self, tensor: torch.Tensor, root: int) -> Poll:
        options = dist.BroadcastOptions()
        options.rootRank = self.group.ranks.index(root)
        options.rootTensor = 0
        options.asyncOp = True
        work = self._processes.broadcast([tensor], options)
        work.get_future().add_done_callback(lambda _: self.control.wake())

        def ended() -> bool:
            if not work.is_completed():
                return False
            try:
                work.wait()
            except RuntimeError as error:
                raise self._translate(error) from error
            return True

        return ended

    def _translate(self, error: RuntimeError) -> TransportError:
        text = first_line(error)
        if "Connection closed" in text or "Connection reset" in text or "Broken pipe" in text:
            return PeerLostError(f"{self._peers_in_words()} is gone: route {self.group.route}: {text}")
        if "Timed out" in text or "timed out" in text:
            return TransferTimeout(f"route {self.group.route}: {text}")
        return TransferError(f"route {self.group.route}: {text}")

    def _peers_in_words(self) -> str:
        """Those of whom one is meant where gloo names a connection."""
        peers = self.group.peers
        named = ", ".join(map(str, peers[:PEERS_NAMED])) + (", ..." if len(peers) > PEERS_NAMED else "")
        return f"rank {named}" if len(peers) == 1 else f"one of ranks {named}"

    def _shut(self) -> None:
        if self._processes is None:
            return
        last, self._processes = [self._processes], None
        self._connections.end()
        # The destructor waits for operations, and gloo never wakes one of which a part had moved when its connection
        # ended: Pair::signalException (gloo/transport/tcp/pair.cc) tells those that wait, not those under way.
        destroyer = threading.Thread(target=last.clear, name="ckpt-transport-gloo-end", daemon=True)
        destroyer.start()
        destroyer.join(LONGEST_CLOSE)


class GlooTransport(Transport):
    """Is the collective transport over torch.distributed's gloo, between CPUs anywhere."""

    name = "gloo"
    traits = Traits(
        reach=Reach.NETWORK,
        sends_from=frozenset({MemoryKind.PRIVATE, MemoryKind.SHARED}),
        fan_out=FanOut.TREE,
        bandwidth=2e9,
        latency=300e-6,
        at_once=THREADS,
    )

    @classmethod
    def probe(cls) -> Availability:
        if dist.is_available() and dist.is_gloo_available():
            return Availability(True)
        return Availability(False, "this torch was built without gloo", "install torch from its official wheels")

    def open(self, group: Group, control: Control, timeout: float) -> Endpoint:
        return GlooEndpoint(group, control, timeout)


def first_line(error: BaseException) -> str:
    """Return gloo's own message without its advice, and without the line of its source."""
    return re.sub(r"^\[\S+\.(cc|h):[0-9]+\] ", "", str(error).split(" This is typically")[0].splitlines()[0])
