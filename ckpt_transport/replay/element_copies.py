"""What a layout copies, as bytes that go from tensors of a version to tensors of a module, for changes of elements."""

from __future__ import annotations

from functools import cached_property

from ckpt_transport.memory import ElementCopy, StridedBytes
from ckpt_transport.replay.layout import Copy, Layout


class ElementCopies:
    """Follows single elements through a layout.

    Args:
        layout: what a loader does; only its copies are looked at, which convert nothing.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """The names of the tensors that are written, in the order in which :attr:`copies` count them."""
        return tuple(self._layout.targets[number].name for number in self._numbers)

    @cached_property
    def copies(self) -> StridedBytes:
        """All copies, from the layout's sources to :attr:`targets`."""
        at = {number: place for place, number in enumerate(self._numbers)}
        return StridedBytes.of([_by_bytes(copy, at[copy.target]) for copy in self._layout.copies])

    @cached_property
    def _numbers(self) -> list[int]:
        return sorted({copy.target for copy in self._layout.copies})


def _by_bytes(copy: Copy, target: int) -> ElementCopy:
    read, write = copy.read, copy.write
    return ElementCopy(
        copy.source, target, read.offset, write.offset, write.itemsize, write.shape, read.strides, write.strides
    )
