"""An engine that waits in the middle of an update until it may go on."""

from __future__ import annotations

import threading

import torch

from ckpt_transport import LoadedBucket
from ckpt_transport.spi import Fence
from ckpt_transport_torch.engine import TorchEngine
from tests.patience import DEADLINE


class SlowEngine(TorchEngine):
    """Waits before it loads a bucket, by default its third, until it may go on."""

    loads, waits_at = 0, 3

    def __init__(self, module: torch.nn.Module, label: str = "sink 0") -> None:
        super().__init__(module, "", label)
        self.may_go_on = threading.Event()

    def _why_unread(self) -> str:
        return "it waits before it loads"

    def load(self, bucket: LoadedBucket) -> Fence | None:
        self.loads += 1
        if self.loads == self.waits_at:
            assert self.may_go_on.wait(DEADLINE)
        return super().load(bucket)
