"""Elements in a GPU's memory are exchanged with what lies at their addresses, in one launch."""

from __future__ import annotations

from functools import cache

import torch

from ckpt_transport.deltas.elements import Elements
from ckpt_transport.memory import Launch

WARPS = 4
BLOCK = 1024
"""Elements of a kernel's program."""


class DeviceExchange:
    """Exchanges the same elements as often as asked. After the first time their values are the undo log.

    It needs Triton, see :func:`~ckpt_transport.deltas.why_no_exchange`. The kernel is compiled here: requests should
    not be held for that.

    Args:
        elements: no two at one address, best ascending; addresses are of the GPU's own memory. Values are written.

    Attributes:
        nbytes: of addresses and values.
        count: how many elements there are.
    """

    def __init__(self, elements: Elements) -> None:
        self._addresses, self._values = elements
        self.nbytes, self.count = self._addresses.nbytes + self._values.nbytes, len(self._values)
        if self.count:
            with torch.cuda.device(self._values.device):
                compile_exchange(self._addresses, self._values)

    def changes(self) -> None:
        """Nobody on the host knows what the last exchange has changed."""

    def exchange(self) -> None:
        """Enqueue it on the current stream of the GPU, which is the current one."""
        if self.count:
            exchange_by_kernel(self._addresses, self._values)


def exchange_by_kernel(addresses: torch.Tensor, values: torch.Tensor) -> None:
    """Enqueue the exchange on the current stream of the device, which is the current one."""
    programs = -(-len(values) // BLOCK)
    _kernel_on(values.device, values.dtype)(programs, addresses, values, len(values))


def compile_exchange(addresses: torch.Tensor, values: torch.Tensor) -> None:
    """Have the kernel compiled, if it is not, and exchange nothing."""
    _kernel_on(values.device, values.dtype)(1, addresses, values, 0)


@cache
def _kernel_on(device: torch.device, dtype: torch.dtype) -> Launch:
    """The kernel as it is compiled for one device and type. Only where Triton is installed it can be imported."""
    from ckpt_transport.deltas.exchange_kernel import exchange_elements

    return Launch(exchange_elements, WARPS, BLOCK=BLOCK)
