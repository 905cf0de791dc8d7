"""A running vLLM under the conformance kit of engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load_file

from ckpt_transport import Config
from ckpt_transport.testing.engine import FleetUnderTest
from ckpt_transport_vllm import VllmFleet
from ckpt_transport_vllm.server import VllmServer
from tests.vllm.servers import PATIENCE, PROMPTS, Answers, Replica, update


class ReplicaUnderTest(FleetUnderTest):
    """A server that is tried in one check after another, and is brought back to version 1 before each.

    Args:
        replica: the server.
        answers: what versions 1 and 2 say on a fresh start.
        config: of who updates.
    """

    def __init__(self, replica: Replica, answers: Sequence[Answers], config: Config) -> None:
        self._replica, self._answers = replica, answers
        self._asked = next(
            number for number, _ in enumerate(PROMPTS) if len({each.tokens[number][0] for each in answers}) == 2
        )
        self.processes = [worker.pid for worker in replica.workers()]
        update([replica], replica.checkpoint(1), "v1")
        self.sinks = replica.sinks()
        self.driven = VllmServer(replica.url)
        self.fleet = VllmFleet([replica.url], config)

    def tensors(self, version: int) -> Mapping[str, torch.Tensor]:
        files = sorted(self._replica.checkpoint(version).glob("*.safetensors"))
        return {name: tensor for file in files for name, tensor in load_file(file).items()}

    def expected(self, version: int) -> object:
        return self._answers[version - 1].tokens[self._asked][0]

    def ask(self) -> object:
        return self._replica.complete(PROMPTS[self._asked], tokens=1, timeout=PATIENCE)[0]

    def close(self) -> None:
        self.fleet.close()
        self.driven.close()
