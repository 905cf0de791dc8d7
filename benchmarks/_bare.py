"""Measures the libraries under the point-to-point transports alone: one big transfer between processes."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

PAUSE = 0.0001


class Bare(Protocol):
    """One end. Both are made, are given each other's ``address``, and then ``move`` together."""

    address: Any

    def connect(self, other: Any) -> None: ...

    def move(self) -> None: ...


class BareNixl:
    """The receiver reads all of the sender's memory by one request; the sender's progress thread sleeps when idle."""

    def __init__(self, memory: torch.Tensor, receives: bool) -> None:
        self._api: Any = importlib.import_module("nixl_cu13._bindings")
        config = self._api.nixlAgentConfig()
        config.useProgThread, config.pthrDelay = not receives, 100_000
        self._agent = self._api.nixlAgent("receiver" if receives else "sender", config)
        self._backend = self._agent.createBackend("UCX", {})
        self._tensor, self._memory = memory, (memory.data_ptr(), memory.nbytes, 0)
        self._agent.registerMem(self._api.nixlRegDList(self._api.DRAM_SEG, [(*self._memory, "")]), [self._backend])
        self._receives = receives
        self.address = self._agent.getLocalMD(), self._memory

    def connect(self, other: Any) -> None:
        metadata, self._other = other
        self._name = self._agent.loadRemoteMD(metadata).decode()

    def move(self) -> None:
        if not self._receives:
            return
        api = self._api
        local, remote = (api.nixlXferDList(api.DRAM_SEG, [memory]) for memory in (self._memory, self._other))
        request = self._agent.createXferReq(api.NIXL_READ, local, remote, self._name, "", [self._backend])
        status = self._agent.postXferReq(request)
        while status == api.NIXL_IN_PROG:
            status = self._agent.getXferStatus(request)
        assert status == api.NIXL_SUCCESS
        self._agent.releaseXferReq(request)


class BareMooncake:
    """The receiver reads all of the sender's memory by one blocking call, over TCP."""

    def __init__(self, memory: torch.Tensor, receives: bool) -> None:
        self._engine: Any = importlib.import_module("mooncake.engine").TransferEngine()
        assert self._engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
        self._memory, self._receives = memory, receives
        assert self._engine.register_memory(memory.data_ptr(), memory.nbytes) == 0
        self.address = f"127.0.0.1:{self._engine.get_rpc_port()}", memory.data_ptr()

    def connect(self, other: Any) -> None:
        self._peer, self._source = other

    def move(self) -> None:
        if self._receives:
            target, nbytes = self._memory.data_ptr(), self._memory.nbytes
            assert self._engine.transfer_sync_read(self._peer, target, self._source, nbytes) == 0


class BareUcx:
    """One tagged message with all bytes, with error handling as the transport sets it, or with none at all."""

    settings: Mapping[str, str] = {
        "POSIX_ERROR_HANDLING": "y",
        "SYSV_ERROR_HANDLING": "y",
        "RNDV_FRAG_MEM_TYPE": "host",
    }
    handles_errors = True

    def __init__(self, memory: torch.Tensor, receives: bool) -> None:
        self._library: Any = importlib.import_module("ucxx._lib.libucxx")
        array = importlib.import_module("ucxx._lib.arr").Array
        features = (self._library.Feature.TAG, self._library.Feature.WAKEUP)
        self._worker = self._library.UCXWorker(self._library.UCXContext(dict(self.settings), features))
        self._worker.start_progress_thread(polling_mode=False, epoll_timeout=100)
        self._tensor, self._array, self._receives = memory, array(memory.numpy()), receives
        self.address = self._worker.address.tobytes()

    def connect(self, other: Any) -> None:
        address = self._library.UCXAddress.create_from_buffer(other)
        self._endpoint = self._worker.create_endpoint_from_worker_address(address, self.handles_errors)

    def move(self) -> None:
        tag = self._library.UCXXTag(1)
        start = self._endpoint.tag_recv if self._receives else self._endpoint.tag_send
        request = start(self._array, tag)
        while not request.completed:
            time.sleep(PAUSE)
        request.check_error()


class BareUcxUnsafe(BareUcx):
    """As fast as UCX gets here, and a receiver whose sender dies is aborted."""

    settings: Mapping[str, str] = {"RNDV_FRAG_MEM_TYPE": "host"}
    handles_errors = False


BARE: Mapping[str, Callable[[torch.Tensor, bool], Bare]] = {
    "nixl": BareNixl,
    "mooncake": BareMooncake,
    "ucx": BareUcx,
    "ucx without error handling": BareUcxUnsafe,
}
