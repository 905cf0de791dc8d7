"""A running vLLM under the conformance kit of engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load_file

from ckpt_transport import Config
from ckpt_transport_vllm import VllmFleet
from ckpt_transport_vllm.server import VllmServer
from tests.support.answers import ServedUnderTest
from tests.vllm.servers import Answers, Replica, update


class ReplicaUnderTest(ServedUnderTest):
    """A server that is tried in one check after another, and is brought back to version 1 before each.

    Args:
        replica: the server.
        answers: what versions 1 and 2 say on a fresh start.
        config: of who updates.
    """

    def __init__(self, replica: Replica, answers: Sequence[Answers], config: Config) -> None:
        super().__init__(replica, answers)
        self._replica = replica
        self.processes = [worker.pid for worker in replica.workers()]
        update([replica], replica.checkpoint(1), "v1")
        self.sinks = replica.sinks()
        self.driven = VllmServer(replica.url)
        self.fleet = VllmFleet([replica.url], config)

    def tensors(self, version: int) -> Mapping[str, torch.Tensor]:
        files = sorted(self._replica.checkpoint(version).glob("*.safetensors"))
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
