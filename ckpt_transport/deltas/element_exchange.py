"""Elements of a delta are exchanged with what lies at their addresses, all of them or none."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ckpt_transport.deltas.all_cores import by_all_cores
from ckpt_transport.deltas.sections import UNIT_DTYPES
from ckpt_transport.memory import Launch, has_copy_tables, uninterrupted

CHUNK_ELEMENTS = 1 << 16
"""On the host: so many are kept aside at a time."""
WARPS = 4
BLOCK = 1024
"""Elements of a kernel's program."""

Units = npt.NDArray[np.integer]


class Changes(NamedTuple):
    """Elements in host memory that have changed.

    Attributes:
        addresses: of the first byte of each.
        old, new: what was there, and what is.
    """

    addresses: npt.NDArray[np.int64]
    old: Units
    new: Units


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
        self._addresses, self._values, self._device = addresses, values, device
        self.nbytes, self.count = addresses.nbytes + values.nbytes, len(values)
        self._exchange: Callable[[], None] | None = None
        if len(values):
            self._exchange = self._on_gpu(addresses) if device.type == "cuda" else self._on_host(addresses)

    def run(self) -> None:
        """Exchange. What is enqueued on the device before is done first, and all is done when this returns.

        An interrupt waits until then.
        """
        if self._exchange is not None:
            uninterrupted(self._exchange)

    def changes(self) -> Changes | None:
        """What the last exchange has changed; None on a GPU. It holds as long as nobody else writes there."""
        if self._device.type != "cpu":
            return None
        addresses, old = self._addresses.numpy(), self._values.numpy()
        new = np.empty_like(old)
        if len(old):
            step = old.itemsize if not ((addresses - addresses.min()) % old.itemsize).any() else 1
            memory = _memory(low := int(addresses.min()), (int(addresses.max()) - low) // step + 1, step, old.dtype)
            new[:] = memory[(addresses - low) // step]
        return Changes(addresses, old, new)

    def _on_gpu(self, addresses: torch.Tensor) -> Callable[[], None]:
        def exchange() -> None:
            with torch.cuda.device(self._device):
                torch.cuda.synchronize()
                exchange_by_kernel(addresses, self._values)
                torch.cuda.synchronize()

        return exchange

    def _on_host(self, addresses: torch.Tensor) -> Callable[[], None]:
        values = self._values.numpy()
        low = int(addresses.min())
        places, step = addresses.numpy() - low, values.itemsize
        if (places % step).any():
            step = 1
        memory = _memory(low, int(places.max()) // step + 1, step, values.dtype)
        places //= step
        starts = range(0, len(values), CHUNK_ELEMENTS)

        def exchange_chunk(start: int) -> None:
            end = start + CHUNK_ELEMENTS
            _exchanged(memory, places[start:end], values[start:end])

        def exchange() -> None:
            by_all_cores(exchange_chunk, starts)

        return exchange


def why_no_exchange(device: torch.device) -> str:
    """Why elements cannot be exchanged on ``device``; empty where they can."""
    if device.type == "cpu" or has_copy_tables(device):
        return ""
    return f"elements are exchanged on {device.type} by kernels of Triton, which is not installed"


def exchange_by_kernel(addresses: torch.Tensor, values: torch.Tensor) -> None:
    """Enqueue the exchange on the current stream of the device, which is the current one."""
    programs = -(-len(values) // BLOCK)
    _kernel_on(values.device, values.dtype)(programs, addresses, values, len(values))


def _exchanged(memory: Units, places: npt.NDArray[np.int64], values: Units) -> None:
    kept = memory[places]
    memory[places] = values
    values[:] = kept


class _Memory:
    """Memory as NumPy is told of it."""

    def __init__(self, interface: dict[str, object]) -> None:
        self.__array_interface__ = interface


def _memory(start: int, length: int, step: int, dtype: np.dtype[np.integer]) -> Units:
    """All memory from an address on, an element at every ``step`` bytes; only those that are indexed are touched."""
    described = {"version": 3, "data": (start, False), "shape": (length,), "strides": (step,), "typestr": dtype.str}
    return np.asarray(_Memory(described))


@cache
def _kernel_on(device: torch.device, dtype: torch.dtype) -> Launch:
    """The kernel as it is compiled for one device and type. Only where Triton is installed it can be imported."""
    from ckpt_transport.deltas.exchange_kernel import exchange_elements

    return Launch(exchange_elements, WARPS, BLOCK=BLOCK)
