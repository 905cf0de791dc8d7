"""What rules make of tensors depends on names, types and shapes, and not on values: it is kept for the next version."""

from __future__ import annotations

from collections.abc import Mapping as MappingOf
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ckpt_transport.checkpoint.given import OWN_KINDS, check_plain
from ckpt_transport.checkpoint.given_tensor import GivenTensor
from ckpt_transport.checkpoint.mapping import Application, MappedTensors, Mapping


class TensorLook(NamedTuple):
    """All that rules see of a plain tensor, and where it lies in its memory.

    Attributes:
        memory: the number of the first tensor that lies in the same memory.
        start: where it starts there, in elements.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    memory: int
    start: int


class KeptPart(NamedTuple):
    """A part that rules have made, and of which elements of a tensor that was given.

    Attributes:
        part: as it was made; its tensor is not kept.
        origin: the number of the tensor.
        elements: their shape, strides and start in the memory of the tensor; None for all of it, as it is.
    """

    part: GivenTensor
    origin: int
    elements: tuple[tuple[int, ...], tuple[int, ...], int] | None


_NO_TENSOR = torch.empty(0)


class Recipes:
    """Applies mappings, and keeps what was made of the last version for one whose tensors look alike."""

    def __init__(self) -> None:
        self._asked: tuple[Mapping, bool, list[TensorLook]] | None = None
        self._application: Application | None = None
        self._parts: list[KeptPart] = []
        self._made = MappedTensors([], ())

    def apply(self, mapping: Mapping, tensors: object, *, replicated: bool) -> tuple[Application, MappedTensors]:
        """
        Returns: who says which rules have matched, and what has become of the tensors.

        Raises:
            CheckpointError: as :meth:`Application.whole`.
        """
        given, looks = (None, None) if mapping.reads_bytes else _looks(tensors)
        if given is not None and looks is not None and (mapping, replicated, looks) == self._asked:
            assert self._application is not None
            return self._application, self._made._replace(parts=[_made_of(given, kept) for kept in self._parts])
        application = Application(mapping, replicated=replicated)
        made = application.whole(tensors)
        if given is not None and looks is not None and not any(part.added for part in made.parts):
            self._application, self._made = application, MappedTensors([], made.conversions)
            self._parts = _kept(made.parts, given)
            self._asked = mapping, replicated, looks
        return application, made


def _looks(tensors: object) -> tuple[list[torch.Tensor], list[TensorLook]] | tuple[None, None]:
    """The tensors and how they look; None where one is no plain tensor.

    Raises:
        CheckpointError: the bytes of one are not where a plain tensor has them.
    """
    if not isinstance(tensors, MappingOf) or any(type(value) not in OWN_KINDS for value in tensors.values()):
        return None, None
    memories: dict[int, int] = {}
    given: list[torch.Tensor] = []
    looks: list[TensorLook] = []
    for number, (name, value) in enumerate(tensors.items()):
        check_plain(name, value)
        memory = memories.setdefault(value.untyped_storage().data_ptr(), number)
        start = value.storage_offset()
        given.append(value)
        looks.append(TensorLook(name, value.dtype, tuple(value.shape), value.stride(), memory, start))
    return given, looks


def _kept(parts: Sequence[GivenTensor], given: Sequence[torch.Tensor]) -> list[KeptPart]:
    origins: dict[object, int] = {}
    for number, value in enumerate(given):
        memory = value.untyped_storage().data_ptr(), value.dtype
        origins.setdefault(memory, number)
        origins.setdefault((memory, _elements(value)), number)
    found = []
    for part in parts:
        memory, elements = (part.tensor.untyped_storage().data_ptr(), part.tensor.dtype), _elements(part.tensor)
        whole = origins.get((memory, elements))
        kept = part._replace(tensor=_NO_TENSOR)
        found.append(KeptPart(kept, origins[memory], elements) if whole is None else KeptPart(kept, whole, None))
    return found


def _elements(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


def _made_of(given: Sequence[torch.Tensor], kept: KeptPart) -> GivenTensor:
    tensor = given[kept.origin]
    if kept.elements is not None:
        tensor = tensor.detach().as_strided(*kept.elements)
    return GivenTensor(kept.part.spec, tensor, kept.part.ranges, kept.part.replicated)
