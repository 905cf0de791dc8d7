"""Tensors in private memory of a process are described by their addresses: others read them there, and map nothing."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import msgspec

from ckpt_transport import RegistrationError
from ckpt_transport.spi import (
    Descriptor,
    DistantMemory,
    Lendable,
    OtherProcess,
    RunPlace,
    let_others_read,
    places_of,
    prepared,
    this_process,
    use_huge_pages,
)

PREFIX = b"private "
"""How a descriptor begins that is not the name of a segment."""
KNOWN_PLACES = 4
"""So many are remembered: as many as there may be versions that are lent in turns."""
OFTEN = 2
"""Loans of the same memory, after which more are expected."""
_LARGEST = 1 << 62


class PrivateMemory(msgspec.Struct, frozen=True, array_like=True):
    """What a descriptor says.

    Attributes:
        process: whose memory it is.
        starts, addresses, sizes: of each tensor: where it begins in the region, where it is, and its bytes.
    """

    process: OtherProcess
    starts: tuple[int, ...]
    addresses: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, descriptor: Descriptor) -> PrivateMemory:
        """
        Raises:
            RegistrationError: it does not say where tensors are.
        """
        found = msgspec.msgpack.decode(descriptor[len(PREFIX) :], type=prepared(cls))
        numbers = (*found.starts, *found.addresses, *found.sizes)
        if not len(found.starts) == len(found.addresses) == len(found.sizes):
            raise RegistrationError("its numbers of starts, addresses and sizes differ")
        ends = [start + nbytes for start, nbytes in zip(found.starts, found.sizes, strict=True)]
        if any(not 0 <= number < _LARGEST for number in numbers) or any(map(int.__gt__, ends, found.starts[1:])):
            raise RegistrationError("it names memory that there cannot be")
        return found

    def found(self) -> DistantMemory:
        """Where the tensors are.

        Raises:
            TransportError: the process has ended, or may not be read.
        """
        self.process.check()
        return DistantMemory(self.starts, self.addresses, self.sizes, self.process.read)


@dataclass
class _Known:
    """Memory that was described.

    Attributes:
        descriptor: what was said.
        loans: how often.
    """

    descriptor: Descriptor
    loans: int = 0


class LastDescribed:
    """Describes private memory, and keeps what it has said last: a trainer lends the same at each step.

    Memory that comes a second time is put into huge pages, which takes two to three times as long as a copy, once.
    Versions that come in turns are told apart by where they lie, whatever objects are lent.
    """

    def __init__(self) -> None:
        self._process: OtherProcess | None = None
        self._place: Hashable = None
        self._last = _Known(b"")
        self._known: dict[tuple[RunPlace, ...], _Known] = {}
        """The last one used comes last."""

    def describe(self, memory: Lendable) -> Descriptor:
        if self._process != this_process():
            let_others_read()
            self._process, self._place, self._known = this_process(), None, {}
        if self._place != memory.place:
            self._place, self._last = memory.place, self._find(self._process, _filled(memory))
        self._last.loans += 1
        if self._last.loans == OFTEN:
            use_huge_pages((place.address, place.nbytes) for place in _filled(memory))
        return self._last.descriptor

    def _find(self, process: OtherProcess, places: tuple[RunPlace, ...]) -> _Known:
        known = self._known.pop(places, None)
        if known is None:
            starts, addresses, sizes = zip(*places, strict=True) if places else ((), (), ())
            known = _Known(PREFIX + msgspec.msgpack.encode(PrivateMemory(process, starts, addresses, sizes)))
        self._known[places] = known
        if len(self._known) > KNOWN_PLACES:
            del self._known[next(iter(self._known))]
        return known


def _filled(memory: Lendable) -> tuple[RunPlace, ...]:
    """Where its tensors are, but those without bytes."""
    return tuple(place for place in places_of(memory.runs) if place.nbytes)
