"""A staging area is a second memory for what an engine serves: a version is loaded there, and exchanged with it.

After the exchange it holds the version before, bit for bit. So exchanging once more takes a version back.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter

import torch

from ckpt_transport.engine.shadows import MakeShadows, ShadowNeeds, on_device
from ckpt_transport.errors import PlanMismatchError
from ckpt_transport.memory.dense import in_memory_order
from ckpt_transport.memory.exchange import ByteExchange
from ckpt_transport.planning import StagingPlace

_nbytes, _device = attrgetter("nbytes"), attrgetter("device")
Place = tuple[int, torch.device]
"""Where a tensor's memory begins."""


class StagingArea:
    """Holds as many bytes as the tensors that it was made for, and starts with a copy of theirs.

    Args:
        served: the tensors, by name; dense. Names that share memory share it here, each in its own form.
        make: makes the memory; see :mod:`ckpt_transport.engine.shadows`.

    Attributes:
        device: where the shadows are; of several devices the first.
        nbytes: of all shadows.
        place: where that is, for whoever predicts how long an exchange takes.
        addresses: of :attr:`tensors`.

    Raises:
        BudgetError: the memory cannot be had.
    """

    def __init__(self, served: Mapping[str, torch.Tensor], make: MakeShadows = on_device) -> None:
        self._names, self._places = list(served), _places(served)
        places = {_place(tensor): tensor for tensor in served.values()}
        shadows = dict(zip(places, make(list(places.values())), strict=True))
        self._staged = {name: _formed_as(tensor, shadows[_place(tensor)]) for name, tensor in served.items()}
        self.addresses = list(map(torch.Tensor.data_ptr, self._staged.values()))
        self._pairs = [(_raw(tensor), _raw(shadows[place])) for place, tensor in places.items() if tensor.numel()]
        self.device = next((shadow.device for shadow in shadows.values()), torch.device("cpu"))
        self.nbytes = sum(staged.numel() for _, staged in self._pairs)
        on_host = self.device.type == "cpu" and any(tensor.is_cuda for tensor in served.values())
        self.place = StagingPlace(self.nbytes, on_host)
        self._exchange = ByteExchange(self._pairs)

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Where the tensors of a version are loaded, by name: of types, shapes and strides of those that are served."""
        return self._staged

    def is_for(self, served: Mapping[str, torch.Tensor]) -> bool:
        """Whether it was made for these very tensors."""
        return list(served) == self._names and _places(served) == self._places

    def exchange(self, served: Mapping[str, torch.Tensor]) -> None:
        """Exchange what is here and what is served, all or nothing; no forward pass may run.

        Args:
            served: the tensors as they are now.

        Raises:
            PlanMismatchError: they are not those that it was made for; nothing was changed.
        """
        if not self.is_for(served):
            raise PlanMismatchError("what is served was replaced while a version was staged beside it; update it again")
        self.exchange_here()

    def exchange_here(self) -> None:
        """As :meth:`exchange`, where it is known that the tensors are those that it was made for."""
        self._exchange.run()


def place_of(served: Mapping[str, torch.Tensor], make: MakeShadows) -> StagingPlace:
    """Where a version is staged beside ``served``, in an area that ``make`` makes; see :attr:`StagingArea.place`."""
    return StagingPlace(ShadowNeeds.of(served).nbytes, make is not on_device)


def _places(served: Mapping[str, torch.Tensor]) -> tuple[list[int], list[int], list[torch.device]]:
    """Where each begins, how long it is, and on which device: compared while no forward pass may run."""
    tensors = served.values()
    return list(map(torch.Tensor.data_ptr, tensors)), list(map(_nbytes, tensors)), list(map(_device, tensors))


def _place(tensor: torch.Tensor) -> Place:
    return tensor.data_ptr(), tensor.device


def _formed_as(tensor: torch.Tensor, shadow: torch.Tensor) -> torch.Tensor:
    """The memory of a shadow, as it lies behind a tensor or behind another one that it is tied to, as its transpose."""
    if (shadow.dtype, shadow.shape, shadow.stride()) == (tensor.dtype, tensor.shape, tensor.stride()):
        return shadow
    return _raw(shadow).view(tensor.dtype).as_strided(tensor.shape, tensor.stride())


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    return in_memory_order(tensor.detach()).view(torch.uint8)
