"""A backing stands behind an extent of a version and can fill slots with its bytes."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

import torch

from ckpt_transport.memory.buffer import MemoryKind
from ckpt_transport.memory.runs import Runs


class Backing(Protocol):
    """Where the bytes of an extent come from.

    A :class:`Lendable` backing is memory from which a transport may send in place. Anything else has kind ``SCATTERED``
    and puts bytes into a slot when a bucket is filled.
    """

    @property
    def nbytes(self) -> int: ...

    @property
    def kind(self) -> MemoryKind: ...

    def only_enqueues(self, device: torch.device) -> bool:
        """Whether filling a slot on that device only enqueues a few copies, so that it returns at once."""

    def fill(self, slot: torch.Tensor, offset: int) -> None:
        """Put the extent's bytes from ``offset`` on into ``slot`` (uint8), as many as it holds.

        Called by several threads at once, with slots on any device. Into a slot in host memory it is complete when this
        returns; else in the order of the calling thread's current stream of the slot's device, to which all work on
        the slot belongs. What lies between tensors may be left as it is.
        """

    def check(self) -> None:
        """Look whether somebody has changed the bytes.

        Raises:
            CheckpointError: somebody was seen to change what the bytes are made of since the version was taken in;
                names the tensor.
        """


class Lendable(Backing, Protocol):
    """Memory that an endpoint can register: a :class:`~ckpt_transport.memory.buffer.Buffer`, or runs that lie apart."""

    @property
    def runs(self) -> Runs:
        """The memory, in one run or several; those begin where they do in the extent."""

    @property
    def place(self) -> Hashable:
        """Equal for all that lies in the same memory: an endpoint which has described one knows the other. Who keeps it
        does not keep the memory."""

    @property
    def digests(self) -> dict[Hashable, bytes]:
        """Those of its bytes that have been computed, by what they are of; whoever writes to it clears them."""
