"""Holds what the engines of plain PyTorch modules have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch

from ckpt_transport import DeltaRefusedError, Engine, Gate, PlanMismatchError
from ckpt_transport.spi import (
    Fence,
    MakeShadows,
    ServedElements,
    ShadowNeeds,
    StagingArea,
    StagingPlace,
    digest_of_served,
    fence,
    on_device,
    place_of,
    why_not_plain,
)


class ModuleEngine(Engine):
    """Holds the forward passes of a module. Its tensors are looked up when an update begins, and not kept after it.

    Args:
        module: what is updated.
        group, label: see :class:`~ckpt_transport.Engine`.
    """

    def __init__(self, module: torch.nn.Module, group: str = "", label: str = "") -> None:
        self.gate = Gate()
        self.group, self.label = group, label
        self._module = module
        self._other_gpus: list[torch.device] = []
        self._area: StagingArea | None = None
        self._make: MakeShadows = on_device
        self._staging = False

    def hold(self) -> int:
        return self.gate.hold()

    def advance(self, forwards: int, timeout: float) -> None:
        self.gate.advance(forwards, timeout)
        for gpu in (self.device, *self._other_gpus):
            if gpu.type == "cuda":
                torch.cuda.synchronize(gpu)

    def resume(self) -> float:
        try:
            return self.gate.resume()
        finally:
            self._release()

    def taint(self, reason: str) -> None:
        self._release()
        self.gate.taint(reason)

    def give_up(self, taint: str) -> None:
        """Leave the tensors to the thread that may be at work on them."""
        if taint:
            self.gate.taint(taint)
        else:
            self.gate.resume()

    def can_stage(self, budget: int) -> str:
        if self._area is not None and not self._is_for_now(self._area):
            self.drop_staged()
        if self._area is not None:
            return ""
        self._make, why = self._needs_of(self._served()).choose(budget)
        return self._labelled(why)

    def _labelled(self, reason: str) -> str:
        return f"{self.label or 'the module'}: {reason}" if reason else ""

    def staging_place(self) -> StagingPlace:
        return place_of(self._served(), self._make) if self._area is None else self._area.place

    def stage(self) -> None:
        if self._area is None:
            self._area = StagingArea(self._served(), self._make)
        self._staging = True

    def restore(self) -> None:
        if self._area is None or not self._is_for_now(self._area):
            raise PlanMismatchError(
                self._labelled("the version before is not kept any more, or what is served has moved")
            )
        self._staging = True

    def exchange(self) -> None:
        assert self._area is not None
        self._area.exchange(self._served())

    def _is_for_now(self, area: StagingArea) -> bool:
        """Whether a staging area was made for the tensors that are served now."""
        return area.is_for(self._served())

    def digest(self) -> str:
        """Of all that ``state_dict()`` holds as plain tensors."""
        state = self._module.state_dict()
        plain = {
            name: each for name, each in state.items() if isinstance(each, torch.Tensor) and not why_not_plain(each)
        }
        return digest_of_served(plain)

    @property
    def staging_nbytes(self) -> int:
        return 0 if self._area is None else self._area.nbytes

    def drop_staged(self) -> None:
        self._area = None

    def _apart(self, elements: ServedElements) -> ServedElements:
        """
        Raises:
            DeltaRefusedError: its tensors are on several devices, not contiguous, or not apart from each other.
        """
        needs = self._needs_of(elements.tensors)
        why = needs.why_not or needs.why_not_by_element
        if self._other_gpus or (self.device.type == "cuda" and not needs.on_gpus):
            why = "its tensors are on several devices"
        if why:
            raise DeltaRefusedError(self._labelled(why))
        return elements

    def detach(self) -> None:
        """The module is not updated any more: undo what was done to it."""

    @abstractmethod
    def _needs_of(self, tensors: Mapping[str, torch.Tensor]) -> ShadowNeeds:
        """What shadows of tensors of the module take; found once for the same."""

    @abstractmethod
    def _served(self) -> Mapping[str, torch.Tensor]:
        """The tensors of the module that an update may write, by name."""

    def _stages_on(self, device: torch.device) -> bool:
        return self._area is not None and self._area.device == device

    @property
    def _written(self) -> Mapping[str, torch.Tensor]:
        """Where a version is loaded: what is served, or what is staged beside it."""
        return self._area.tensors if self._area is not None and self._staging else self._served()

    def _release(self) -> None:
        """The update is over: keep no tensor of the module, so that its owner can free them."""
        self._staging = False

    def _find_devices(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Find out the devices of the module from its tensors."""
        gpus = dict.fromkeys(tensor.device for tensor in tensors.values() if tensor.is_cuda)
        self.device, *self._other_gpus = gpus or [torch.device("cpu")]

    def _reads_end(self) -> Fence | None:
        """When nothing that was enqueued reads the pieces any more; on GPUs other than the engine's it has ended."""
        for gpu in self._other_gpus:
            torch.cuda.current_stream(gpu).synchronize()
        return fence(self.device)
