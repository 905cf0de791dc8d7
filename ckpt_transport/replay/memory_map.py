"""Finds whose memory a tensor is in, while a loader is being recorded."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ckpt_transport import dtypes
from ckpt_transport.memory.byte_ranges import MOST_RANGES, EqualRanges, ranges_of
from ckpt_transport.replay.bindings import plain
from ckpt_transport.replay.fake_tensors import FakeTensors
from ckpt_transport.replay.layout import Owner, OwnerKind, Ref, TargetTensor


def storage_key(tensor: torch.Tensor) -> int:
    """The same for tensors that share memory, as long as one of them lives."""
    return int(tensor.untyped_storage()._cdata)


def whole_memory(tensor: torch.Tensor) -> torch.Tensor:
    """All of the memory that a tensor is a view of, as bytes."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


class Targets:
    """Parameters and buffers by their memory; tied ones are one target.

    Args:
        named: every parameter and buffer, by name.
    """

    def __init__(self, named: Mapping[str, torch.Tensor]) -> None:
        self.tensors: list[torch.Tensor] = []
        self.in_storage: dict[int, list[int]] = {}
        known: dict[object, int] = {}
        names: list[list[str]] = []
        for name, tensor in named.items():
            tensor = plain(tensor)
            storage = storage_key(tensor)
            same = (storage, begin_of(tensor), tensor.shape, tensor.stride()) if tensor.numel() else name
            index = known.setdefault(same, len(names))
            if index < len(names):
                names[index].append(name)
                continue
            names.append([name])
            self.in_storage.setdefault(storage, []).append(index)
            self.tensors.append(tensor)
        parameters = {name for name, tensor in named.items() if isinstance(tensor, torch.nn.Parameter)}
        self.values = [
            TargetTensor(first, tuple(also), not parameters.isdisjoint((first, *also))) for first, *also in names
        ]

    def span(self, index: int) -> tuple[int, int]:
        """Where in its storage a target begins and ends, in bytes."""
        return span(self.tensors[index])

    def at(self, storage: int, begin: int, end: int) -> int:
        """The target in that storage which holds these bytes; the first one when none of them does."""
        indices = self.in_storage[storage]
        if len(indices) > 1:
            for index in indices:
                first, last = self.span(index)
                if first <= begin and end <= last:
                    return index
        return indices[0]


def begin_of(tensor: torch.Tensor) -> int:
    """Where a tensor starts in its storage, in bytes."""
    return int(tensor.storage_offset()) * tensor.itemsize


def span(tensor: torch.Tensor) -> tuple[int, int]:
    """The first byte of its storage that a tensor touches, and the first one after these."""
    begin = begin_of(tensor)
    if not tensor.numel():
        return begin, begin
    last = sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (last + 1) * tensor.itemsize


def ranges_at(ref: Ref, start: int = 0, most: int = MOST_RANGES) -> EqualRanges:
    """The ranges of bytes that elements cover, in memory in which offsets count from byte ``start``.

    Raises:
        TooFineError: as :func:`ranges_of`.
    """
    return ranges_of(start + ref.offset, ref.shape, ref.strides, ref.itemsize, most)


class MemoryMap:
    """Finds the owner of any tensor. What it knows of keeps its memory until it is dropped."""

    def __init__(self, fake_tensors: FakeTensors, targets: Targets) -> None:
        self._fake_tensors, self._targets = fake_tensors, targets
        self._owners: dict[int, Owner] = {}
        self.results: list[torch.Tensor] = []
        for index, tensor in enumerate(fake_tensors.tensors):
            self._owners[storage_key(tensor)] = Owner(OwnerKind.SOURCE, index)
        for storage, indices in targets.in_storage.items():
            self._owners[storage] = Owner(OwnerKind.TARGET, indices[0])

    def owner(self, tensor: torch.Tensor) -> Owner | None:
        """Whose memory it is; None when nobody knows."""
        storage = storage_key(tensor)
        found = self._owners.get(storage)
        if found is None and tensor.is_cpu and tensor.numel():
            at = self._fake_tensors.at(tensor.data_ptr())
            return None if at is None else Owner(OwnerKind.SOURCE, at[0])
        if found is not None and found.kind is OwnerKind.TARGET and len(self._targets.in_storage[storage]) > 1:
            return Owner(OwnerKind.TARGET, self._targets.at(storage, *span(tensor)))
        return found

    def ref(self, tensor: torch.Tensor, owner: Owner) -> Ref:
        """What the tensor is a view of, in the owner's memory."""
        offset = begin_of(tensor)
        if owner.kind is OwnerKind.TARGET:
            offset -= begin_of(self._targets.tensors[owner.index])
        elif owner.kind is OwnerKind.SOURCE and storage_key(tensor) not in self._owners:
            at = self._fake_tensors.at(tensor.data_ptr())
            assert at is not None
            offset = at[1]
        strides = tuple(stride * tensor.itemsize for stride in tensor.stride())
        return Ref(owner.kind, owner.index, tuple(tensor.shape), offset, strides, dtypes.name_of(tensor.dtype))

    def add_result(self, tensor: torch.Tensor) -> int:
        """Take the memory of ``tensor`` as a new result."""
        self.results.append(tensor)
        self._owners[storage_key(tensor)] = Owner(OwnerKind.RESULT, len(self.results) - 1)
        return len(self.results) - 1
