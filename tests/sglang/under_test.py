"""A running SGLang under the conformance kit of engines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load_file

from ckpt_transport import Config, ask_version
from ckpt_transport_sglang import SglangFleet
from tests.sglang.servers import PATIENCE, Answers, Replica, update
from tests.support.answers import ServedUnderTest


class ReplicaUnderTest(ServedUnderTest):
    """A server that is tried in one check after another, and is brought back to version 1 before each.

    Args:
        replica: the server; it wants no key.
        answers: what versions 1 and 2 say on a fresh start.
        config: of who updates.
    """

    def __init__(self, replica: Replica, answers: Sequence[Answers], config: Config) -> None:
        super().__init__(replica, answers)
        self._replica = replica
        update([replica], replica.checkpoint(1), "v1")
        self.sinks = replica.sinks()
        self.processes = [_process_of(sink) for sink in self.sinks]
        self.driven = replica.driven()
        self.fleet = SglangFleet([replica.url], config)

    def tensors(self, version: int) -> Mapping[str, torch.Tensor]:
        return load_file(self._replica.checkpoint(version) / "model.safetensors")


def _process_of(sink: str) -> int:
    """The scheduler that a sink is in, which its label names."""
    label = ask_version(sink, timeout=PATIENCE).label
    named = re.search(r"in process (\d+)", label)
    assert named is not None, label
    return int(named[1])
