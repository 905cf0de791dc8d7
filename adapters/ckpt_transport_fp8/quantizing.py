"""The extent of a version that is quantized on its way: buckets of it are computed when they are filled."""

from __future__ import annotations

import torch

from ckpt_transport.spi import MemoryKind, ScatteredTensors
from ckpt_transport_fp8.computed import Computed
from ckpt_transport_fp8.scales import Scaled


class Quantizing:
    """An extent that is laid out as a pool of the quantized tensors would be; a
    :class:`~ckpt_transport.memory.Backing`.

    Args:
        kept: what is sent as it is; it watches the tensors that the rest is computed from as well.
        scaled: the scales, and the factors that go with them.
        computed: the rest.
    """

    kind = MemoryKind.SCATTERED

    def __init__(self, kept: ScatteredTensors, scaled: Scaled, computed: Computed) -> None:
        self._kept, self._scaled, self._computed = kept, scaled, computed
        self.nbytes = kept.nbytes

    def only_enqueues(self, device: torch.device) -> bool:
        return False

    def fill(self, slot: torch.Tensor, offset: int) -> None:
        with self._computed.room_for(slot) as room:
            self._kept.fill(room, offset)
            for rows in self._scaled.rows:
                rows.fill(room, offset)
            self._computed.fill(room, offset, self._scaled.factors)

    def check(self) -> None:
        self._kept.check()
