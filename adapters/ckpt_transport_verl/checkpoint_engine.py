"""The checkpoint engine that verl finds in its registry as ``ckpt_transport``."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, TypedDict

import torch
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

from ckpt_transport import Config, Mapping, ParameterServer, Sink, StreamEngine, rules
from ckpt_transport.spi import dtypes
from ckpt_transport_ray import node_address


class Sinks(TypedDict):
    """What verl hands to each worker before an update: the sinks of the rollouts, and to those themselves nothing."""

    sinks: list[Sequence[str]]


@CheckpointEngineRegistry.register("ckpt_transport")
class CkptTransportEngine(CheckpointEngine):
    """Brings an actor group's weights to rollouts, all of them by one plan.

    Every rank of the actor group is a source of its share of the tensors, for as long as an update takes, and finds the
    others as torch does. Each rollout worker has a sink, from which verl's server adapter takes tensors one by one.

    Args:
        bucket_size: as verl passes it, in bytes.
        is_master: as verl passes it to the actor group, and to nobody else.
        rollout_dtype: what floating-point weights are cast to, as torch calls it; empty to leave them.
        settings: of ckpt_transport, as ``transport`` and ``secret_file``. With a secret, workers listen at their node's
            address; without one all must be on this host.
    """

    def __init__(
        self,
        bucket_size: int,
        is_master: bool | None = None,
        rollout_dtype: str | torch.dtype = "bfloat16",
        **settings: Any,
    ) -> None:
        self.config = Config.load(**{"bucket_bytes": bucket_size, **settings})
        self._is_source = is_master is not None
        self._mapping = Mapping((rules.Cast(_our_name(rollout_dtype)),)) if rollout_dtype else None
        self._updates = itertools.count(1)
        self._stream: StreamEngine | None = None
        self._sink: Sink | None = None
        self._sinks: Sequence[str] = ()

    def prepare(self) -> str:
        """The address of this worker's sink, which is there from now on; empty in the actor group."""
        if self._is_source:
            return ""
        if self._sink is None:
            self._stream = StreamEngine(
                f"rollout rank {os.environ.get('RANK', '0')}", "cuda" if torch.cuda.is_available() else "cpu"
            )
            self._sink = Sink(self._stream, node_address() if self.config.secret_file else "", config=self.config)
            self._sink.start()
        return self._sink.address

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[str]
    ) -> tuple[Sinks, Sinks]:
        """Tell the actor group where the sinks are."""
        sinks = metadata[actor_wg_world_size:]
        return {"sinks": [sinks] * actor_wg_world_size}, {"sinks": [()] * rollout_world_size}

    def init_process_group(self, sinks: Sequence[str]) -> None:
        """Remember where the sinks are."""
        self._sinks = sinks

    def finalize(self) -> None:
        """Sources have let go of everything, and sinks are kept."""

    def close(self) -> None:
        """Close the sink, for who outlives it. verl calls this never, because its workers end with their sinks."""
        if self._sink is not None:
            self._sink.close()

    async def send_weights(
        self, weights: Iterator[tuple[str, torch.Tensor]], global_steps: int | None = None
    ) -> dict[str, float]:
        """Bring the weights to the rollouts; how long it took, on rank 0."""
        version = f"step-{next(self._updates) if global_steps is None else global_steps}"
        # Ray ends actors without a word to them, so nothing may lie in shared memory from one update to the next.
        with ParameterServer(self.config) as server:
            with torch.no_grad():
                server.register(version, tensors=_share(weights, server), mapping=self._mapping)
            report = await server.awaiting(server.update, version, self._sinks)
        return {} if report is None else {"weight_sync/seconds": report.seconds}

    async def receive_weights(self, global_steps: int | None = None) -> AsyncIterator[tuple[str, torch.Tensor]]:
        """Take the weights as they come. A tensor is valid until the next is asked for."""
        assert self._stream is not None, "verl prepares its workers first"
        with closing(self._stream.receive(self.config.update_timeout)) as received:
            while (pair := await asyncio.to_thread(partial(next, received, None))) is not None:
                yield pair


def _share(weights: Iterator[tuple[str, torch.Tensor]], server: ParameterServer) -> Iterator[tuple[str, torch.Tensor]]:
    """A rank's share of the tensors. It asks for each, because ranks gather every one together."""
    return (pair for number, pair in enumerate(weights) if number % server.world_size == server.rank)


def _our_name(dtype: str | torch.dtype) -> str:
    return dtypes.name_of(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
