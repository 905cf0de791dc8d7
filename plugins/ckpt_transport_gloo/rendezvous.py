"""Lets gloo's members find each other by a torch store whose keys travel over the route's own control channel."""

from __future__ import annotations

import time
from datetime import timedelta

import msgspec
from torch._C._distributed_c10d import Store

from ckpt_transport import TransferError, TransferTimeout, TransportError
from ckpt_transport.spi import UNREADABLE, Control, Group, prepared


class ControlStore(Store):
    """The part of torch's store interface that gloo's rendezvous uses. No socket of its own, hence nothing to guard.

    Source of the protocol: gloo's full-mesh rendezvous (gloo/rendezvous/context.cc): each rank sets its addresses
    under a key of its own and waits for everybody else's.
    """

    def __init__(self, group: Group, control: Control, timeout: float) -> None:
        super().__init__()
        self._group, self._control = group, control
        self._deadline = time.monotonic() + timeout
        self._entries: dict[str, bytes] = {}
        self.failure: TransportError | None = None

    def set(self, key: str, value: bytes | str) -> None:
        data = value.encode() if isinstance(value, str) else bytes(value)
        self._entries[key] = data
        for peer in self._group.peers:
            self._control.send(peer, msgspec.msgpack.encode((key, data)))

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._entries[key]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        try:
            while not all(key in self._entries for key in keys):
                self._receive(keys)
        except TransportError as error:
            self.failure = error
            raise

    def _receive(self, keys: list[str]) -> None:
        message = self._control.receive()
        if message is not None:
            try:
                key, value = msgspec.msgpack.decode(message[1], type=prepared(tuple[str, bytes]))
            except UNREADABLE as error:
                raise TransferError(f"route {self._group.route}: rank {message[0]} says no address: {error}") from error
            self._entries[key] = value
        elif time.monotonic() > self._deadline:
            missing = [key for key in keys if key not in self._entries]
            raise TransferTimeout(f"route {self._group.route}: nobody announced {missing} in time")
        else:
            time.sleep(0.0005)
