"""Elements of a delta are exchanged with what lies at their addresses, all of them or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cache

import torch

from ckpt_transport.deltas.host_elements import HostElements
from ckpt_transport.deltas.host_exchange import Changes, HostExchange
from ckpt_transport.deltas.sections import UNIT_DTYPES
from ckpt_transport.memory import Launch, has_copy_tables, uninterrupted

WARPS = 4
BLOCK = 1024
"""Elements of a kernel's program."""


class ElementExchange:
    """Exchanges the same elements as often as asked. After the first time ``values`` is what was there: the undo log.

    Args:
        addresses: of the first byte of each element; int64, on ``device``, no two alike, best ascending.
        values: what is to be there; of the integer type of the unit's size, contiguous, on ``device``. It is written.
        unit: bytes of an element.
        device: whose memory the addresses are of. On a GPU it needs Triton, see :func:`why_no_exchange`.

    Attributes:
        nbytes: of the addresses and the values.
        count: how many elements there are.
    """

    def __init__(self, addresses: torch.Tensor, values: torch.Tensor, unit: int, device: torch.device) -> None:
        if (addresses.dtype, values.dtype) != (torch.int64, UNIT_DTYPES[unit]) or addresses.shape != values.shape:
            raise ValueError(f"{len(addresses)} addresses do not go with {len(values)} values of {values.dtype}")
        self._host: HostExchange | None = None
        if device.type == "cpu":
            parts = [HostElements.at(addresses.numpy(), values.numpy())] if len(values) else []
            self._host = HostExchange(parts)
        elif len(values):
            with torch.cuda.device(device):
                compile_exchange(addresses, values)
        self._addresses, self._values, self._device = addresses, values, device
        self.nbytes, self.count = addresses.nbytes + values.nbytes, len(values)

    def run(self) -> None:
        """Exchange. What is enqueued on the device before is done first, and all is done when this returns.

        An interrupt waits until then.
        """
        if self.count:
            uninterrupted(lambda: exchange_each([self], self._device))

    def changes(self) -> Iterator[Changes] | None:
        """What the last exchange has changed; None on a GPU. It holds as long as nobody else writes there."""
        return None if self._host is None else self._host.changes()

    def exchange(self) -> None:
        """Exchange on the host; on a GPU enqueue that on the current stream. An interrupt is not kept away."""
        if self._host is not None:
            self._host.exchange()
        elif self.count:
            exchange_by_kernel(self._addresses, self._values)


def exchange_each(exchanges: Sequence[ElementExchange | HostExchange], device: torch.device) -> None:
    """Exchange the elements of each, all on ``device``. All is done when it returns; an interrupt is not kept away."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        _synchronize(device)
        for exchange in exchanges:
            exchange.exchange()
        _synchronize(device)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def why_no_exchange(device: torch.device) -> str:
    """Why elements cannot be exchanged on ``device``; empty where they can."""
    if device.type == "cpu" or has_copy_tables(device):
        return ""
    return f"elements are exchanged on {device.type} by kernels of Triton, which is not installed"


def exchange_by_kernel(addresses: torch.Tensor, values: torch.Tensor) -> None:
    """Enqueue the exchange on the current stream of the device, which is the current one."""
    programs = -(-len(values) // BLOCK)
    _kernel_on(values.device, values.dtype)(programs, addresses, values, len(values))


def compile_exchange(addresses: torch.Tensor, values: torch.Tensor) -> None:
    """Have the kernel compiled, if it is not, and exchange nothing: requests should not be held for that."""
    _kernel_on(values.device, values.dtype)(1, addresses, values, 0)


@cache
def _kernel_on(device: torch.device, dtype: torch.dtype) -> Launch:
    """The kernel as it is compiled for one device and type. Only where Triton is installed it can be imported."""
    from ckpt_transport.deltas.exchange_kernel import exchange_elements

    return Launch(exchange_elements, WARPS, BLOCK=BLOCK)
