"""A stored version is a version as one rank holds it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ckpt_transport import dtypes
from ckpt_transport.checkpoint.computed import ComputedExtent
from ckpt_transport.checkpoint.scattered import ScatteredTensors
from ckpt_transport.errors import StoreError
from ckpt_transport.memory import Backing, Buffer
from ckpt_transport.planning.values.manifest import Extent, Manifest


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A stored version is a version as one rank holds it.

    The memory stays as it is until the version is unregistered, and no region of an endpoint may cover it then. It is
    the store's, but for lent tensors, which are their owner's.

    Attributes:
        manifest: this rank's part; its extents are the pools, owned by this rank: one, unless tensors came one by one.
            Tensors are in the order of offsets.
        extents: what is behind each extent.
        base: the version that has the other tensors; empty when this one has all.
        content: equal to that of no version that has other bytes, whatever its name.
    """

    manifest: Manifest
    extents: tuple[Backing, ...]
    base: str = ""
    content: object = field(default_factory=object, repr=False, compare=False)

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """Those extents that are one run of memory."""
        return tuple(extent for extent in self.extents if isinstance(extent, Buffer))

    @property
    def made_on(self) -> torch.device | None:
        """The one device on which all of it lies or is made, where none of it is a copy; else None."""
        devices = {None if isinstance(extent, Buffer) else made_on(extent) for extent in self.extents}
        return devices.pop() if len(devices) == 1 else None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Views of the tensors, by name. They last until the version is unregistered.

        Raises:
            StoreError: the version is lent, so that its owner has the tensors; or this rank has parts of them.
        """
        if len(self.buffers) != len(self.extents):
            raise StoreError(f"version '{self.manifest.version}' is lent, and its tensors are with their owner")
        if not all(place.whole for place in self.manifest.tensors):
            raise StoreError(
                f"this rank holds parts of the tensors of version '{self.manifest.version}', not all of each"
            )
        return {
            place.spec.name: dtypes.as_tensor(
                self.buffers[place.extent].tensor[place.offset : place.offset + place.nbytes],
                place.spec.dtype,
                place.spec.shape,
            )
            for place in self.manifest.tensors
        }


def made_on(backing: Backing) -> torch.device | None:
    """Where bytes that are no copy lie or are made, the same each time; None for several places, or if unknown."""
    return backing.made_on if isinstance(backing, ScatteredTensors | ComputedExtent) else None


def extent_of(rank: int, backing: Backing) -> Extent:
    """What a manifest says of the memory of a rank."""
    if isinstance(backing, ScatteredTensors):
        return Extent(rank, backing.nbytes, backing.kind, backing.device, backing.reason)
    return Extent(rank, backing.nbytes, backing.kind)
