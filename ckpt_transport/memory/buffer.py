"""Contiguous bytes that a transport can register."""

from __future__ import annotations

import enum
from collections.abc import Hashable
from concurrent.futures import Executor
from dataclasses import dataclass, field

import torch

from ckpt_transport.memory.copy import copy_each
from ckpt_transport.memory.pages import populate
from ckpt_transport.memory.pinning import READ_ONLY, pin, pinned
from ckpt_transport.memory.runs import MemoryRun, Runs
from ckpt_transport.memory.segment import Segment


class MemoryKind(enum.StrEnum):
    """The kind of memory decides which transports can send from it in place."""

    PRIVATE = "private"
    """Ordinary host memory of one process."""
    SHARED = "shared"
    """Host memory with a name that other processes of this host can map."""
    CUDA = "cuda"
    """Memory of a CUDA device."""
    SCATTERED = "scattered"
    """Tensors that lie apart, each where its owner keeps it, on any device. Nothing is sent from there in place."""
    EXPORTED = "exported"
    """Tensors that lie apart on one GPU, in memory that other processes can map."""
    PAGED = "paged"
    """The same, in memory that is handed to other processes as open files."""
    READABLE = "readable"
    """Tensors that lie apart in host memory of one process, which others of this host may be allowed to read."""


ON_ONE_GPU = frozenset({MemoryKind.EXPORTED, MemoryKind.PAGED})
"""Kinds of memory that lies apart on one GPU and can be mapped."""


APART = frozenset({*ON_ONE_GPU, MemoryKind.READABLE})
"""Kinds of memory that is sent from where it lies apart."""


CONTIGUOUS = frozenset({MemoryKind.PRIVATE, MemoryKind.SHARED, MemoryKind.CUDA})
"""Kinds of memory that a :class:`Buffer` can be of."""


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """Contiguous bytes. Their owner keeps the buffer alive for as long as a region covers it. It equals only itself.

    Attributes:
        tensor: shape ``(nbytes,)``, dtype uint8.
        segment: the named memory behind it, when it has a name.
        digests: those of its bytes that have been computed, by what they are of; whoever writes to it clears them.
        place: equal to that of no other buffer; who keeps it does not keep the memory.
    """

    tensor: torch.Tensor
    segment: Segment | None = None
    digests: dict[Hashable, bytes] = field(default_factory=dict, repr=False)
    place: Hashable = field(default_factory=object, repr=False)

    @property
    def nbytes(self) -> int:
        return self.tensor.numel()

    @property
    def kind(self) -> MemoryKind:
        if self.segment is not None:
            return MemoryKind.SHARED
        return MemoryKind.CUDA if self.tensor.is_cuda else MemoryKind.PRIVATE

    @property
    def runs(self) -> Runs:
        """All of it, as one run."""
        return (MemoryRun(0, self.tensor),)

    def only_enqueues(self, device: torch.device) -> bool:
        return self.tensor.is_cuda or pinned(self.tensor)

    def fill(self, slot: torch.Tensor, offset: int) -> None:
        """Copy the bytes from ``offset`` on into ``slot``, as many as it holds.

        :meth:`ckpt_transport.memory.Backing.fill` says when that has ended.
        """
        copy_each([slot], [self.tensor[offset : offset + slot.numel()]])

    def check(self) -> None:
        """Do nothing: nobody writes to the memory of a version."""

    def populate(self, threads: Executor) -> None:
        """Bring in the pages of new host memory; what it holds may be lost.

        Raises:
            SharedMemoryError: ``/dev/shm`` is full.
        """
        segment = self.segment
        populate(self.tensor, (lambda start, nbytes: None) if segment is None else segment.reserve, threads)

    def pin(self) -> bool:
        """Page-lock host memory for as long as ``tensor`` lives; see :func:`~ckpt_transport.memory.pinning.pin`."""
        return pin(self.tensor, flags=READ_ONLY if self.segment is not None and not self.segment.writable else 0)

    @classmethod
    def private(cls, nbytes: int) -> Buffer:
        """Take ordinary host memory of ``nbytes``, not initialised."""
        return cls(torch.empty(nbytes, dtype=torch.uint8))

    @classmethod
    def of(cls, segment: Segment) -> Buffer:
        """Make a buffer of the whole of a shared segment."""
        return cls(segment.tensor(), segment)
