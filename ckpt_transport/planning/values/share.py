"""A share is what one sink needs of a version, where that is not all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Self

import msgspec

from ckpt_transport.memory import StridedRange, joined
from ckpt_transport.planning.values.block_order import BlockOrder
from ckpt_transport.planning.values.byte_ranges import ByteRangeSet
from ckpt_transport.planning.values.manifest import TensorSpec


class Share(msgspec.Struct, frozen=True, array_like=True):
    """The bytes of a version that one sink takes in.

    Attributes:
        specs: :func:`digest_of` the tensors of the versions that it holds for.
        ranges: (tensor, first byte, number of bytes) each; those of one tensor ascend and do not touch each other.
        slices: of tensors that are sliced too finely to be sent in parts, so that ``ranges`` names all of them: what is
            read of these, and nothing else is. They have no byte in common.
    """

    specs: str
    ranges: tuple[tuple[str, int, int], ...]
    slices: tuple[tuple[str, StridedRange], ...] = ()

    def reads(self) -> Iterator[tuple[str, StridedRange]]:
        """All that is read, each byte once: tensors, and bytes of these."""
        sliced = {name for name, _ in self.slices}
        yield from self.slices
        for name, start, nbytes in self.ranges:
            if nbytes and name not in sliced:
                yield name, StridedRange(start, nbytes)

    def in_order(self, orders: Iterable[BlockOrder]) -> Share:
        """The same bytes, where those of some tensors are numbered block by block."""
        known = {order.name: order for order in orders}
        if not known:
            return self
        parts: dict[str, list[StridedRange]] = {}
        for name, part in self.reads():
            if name in known:
                parts.setdefault(name, []).extend(number for number, _ in known[name].numbers(part))
        found = ByteRangeSet(each for each in self.ranges if each[0] not in known or not each[2])
        slices = [each for each in self.slices if each[0] not in known]
        for name, numbers in parts.items():
            if any(part.runs > 1 for part in numbers):
                found.add(name, 0, known[name].nbytes)
                slices += ((name, part) for part in joined(numbers))
            else:
                for part in numbers:
                    found.add(name, part.start, part.nbytes)
        return Share(self.specs, tuple(found), tuple(slices))

    @property
    def nbytes(self) -> int:
        """How many bytes are read."""
        return sum(part.total for _, part in self.reads())


class ServedShares(msgspec.Struct, frozen=True, array_like=True):
    """What sinks serve of one version.

    Attributes:
        shares: of those that do not serve everything, each once.
        everything: a sink does.
        whole: names of tensors of which a sink takes no single elements; ascending.
    """

    shares: tuple[Share, ...] = ()
    everything: bool = True
    whole: tuple[str, ...] = ()

    @classmethod
    def of(cls, shares: Iterable[Share | None], whole: Iterable[str] = ()) -> Self:
        """Args:
        shares: of each sink; None for everything.
        whole: names of tensors, in any order.
        """
        each = dict.fromkeys(shares)
        return cls(tuple(share for share in each if share is not None), None in each, tuple(sorted(set(whole))))


def digest_of(specs: Iterable[TensorSpec]) -> str:
    """SHA-256 of names, types and shapes, in whatever order they come, in hexadecimal."""
    return hashlib.sha256(msgspec.msgpack.encode(sorted(specs, key=lambda spec: spec.name))).hexdigest()
