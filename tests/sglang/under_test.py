"""A running SGLang under the conformance kit of engines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load_file

from ckpt_transport import Config, ask_version
from ckpt_transport.testing.engine import FleetUnderTest
from ckpt_transport_sglang import SglangFleet
from tests.sglang.servers import PATIENCE, PROMPTS, Answers, Replica, update


class ReplicaUnderTest(FleetUnderTest):
    """A server that is tried in one check after another, and is brought back to version 1 before each.

    Args:
        replica: the server; it wants no key.
        answers: what versions 1 and 2 say on a fresh start.
        config: of who updates.
    """

    def __init__(self, replica: Replica, answers: Sequence[Answers], config: Config) -> None:
        self._replica, self._answers = replica, answers
        self._asked = next(
            number for number, _ in enumerate(PROMPTS) if len({each.tokens[number][0] for each in answers}) == 2
        )
        update([replica], replica.checkpoint(1), "v1")
        self.sinks = replica.sinks()
        self.processes = [_process_of(sink) for sink in self.sinks]
        self.driven = replica.driven()
        self.fleet = SglangFleet([replica.url], config)

    def tensors(self, version: int) -> Mapping[str, torch.Tensor]:
        return load_file(self._replica.checkpoint(version) / "model.safetensors")

    def expected(self, version: int) -> object:
        return self._answers[version - 1].tokens[self._asked][0]

    def ask(self) -> object:
        return self._replica.complete(PROMPTS[self._asked], tokens=1, timeout=PATIENCE)[0]

    def close(self) -> None:
        self.fleet.close()
        self.driven.close()


def _process_of(sink: str) -> int:
    """The scheduler that a sink is in, which its label names."""
    label = ask_version(sink, timeout=PATIENCE).label
    named = re.search(r"in process (\d+)", label)
    assert named is not None, label
    return int(named[1])
