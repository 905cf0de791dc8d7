"""A source notices here that somebody has written to tensors that he has lent."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple

import torch

from ckpt_transport.errors import CheckpointError
from ckpt_transport.memory import ByteViews, gathered
from ckpt_transport.memory.host_copies import move_each

SAMPLES = 32
SAMPLE_BYTES = 256

_writes = attrgetter("_version")


class Watching(NamedTuple):
    """How tensors of certain names and sizes are watched.

    Attributes:
        names: of all.
        counted: the numbers of those whose writes torch counts.
        sampled: the numbers of those whose middles are compared.
    """

    names: Sequence[str]
    counted: Sequence[int]
    sampled: Sequence[int]

    @classmethod
    def of(cls, names: Sequence[str], tensors: Sequence[torch.Tensor]) -> Watching:
        """How these are."""
        counted = [number for number, tensor in enumerate(tensors) if not tensor.is_inference()]
        filled = [number for number, tensor in enumerate(tensors) if tensor.nbytes]
        step = max(1, -(-len(filled) // SAMPLES))
        return cls(names, counted, filled[::step])


class Watched:
    """Watches tensors that their owner keeps, and must not change while a version is made of them.

    Torch counts the writes to a tensor's memory, also through its views. It does not count what goes past it: writes by
    fused optimizers, through ``tensor.data`` or NumPy, by a kernel of one's own or another process, or to tensors that
    were made in inference mode. So the middles of some tensors are compared as well, which tells of a step of training.
    What is written elsewhere and past torch is not seen.

    Args:
        tensors: contiguous, by name, as they are now.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        given = list(tensors.values())

        def addresses_now() -> list[int]:
            return list(map(torch.Tensor.data_ptr, given))

        self._watch(Watching.of(tuple(tensors), given), given, ByteViews.of(given), addresses_now, addresses_now())

    @classmethod
    def so(cls, watching: Watching, tensors: Sequence[torch.Tensor], memory: ByteViews) -> Watched:
        """Watch these, whose bytes lie in ``memory``, in the way that others of the same names, sizes and kinds were.

        It is that memory that must stay as it is: a tensor may be given other.
        """
        made = cls.__new__(cls)
        made._watch(watching, tensors, memory, memory.begins_now, memory.begins)
        return made

    def _watch(
        self,
        watching: Watching,
        tensors: Sequence[torch.Tensor],
        memory: ByteViews,
        addresses_now: Callable[[], list[int]],
        addresses: list[int],
    ) -> None:
        self.watching, self._addresses_now = watching, addresses_now
        names = watching.names
        every = len(watching.counted) == len(names)
        self._counting = tensors if every else [tensors[number] for number in watching.counted]
        self._counted_names = names if every else [names[number] for number in watching.counted]
        on_host = [number for number in watching.sampled if tensors[number].is_cpu]
        elsewhere = watching.sampled if not on_host else [each for each in watching.sampled if not tensors[each].is_cpu]
        self._middles = {names[number]: _middle(memory[number]) for number in elsewhere}
        self._on_host = HostMiddles([memory.place(number) for number in on_host])
        self._sampled_names = [names[number] for number in (*on_host, *elsewhere)]
        self._addresses, self._counts, self._samples = addresses, self._counts_now(), self._samples_now()

    def check(self) -> None:
        """
        Raises:
            CheckpointError: a tensor was written to, or its memory was freed, since this was made; names it.
        """
        _compare(self.watching.names, self._addresses, self._addresses_now())
        _compare(self._counted_names, self._counts, self._counts_now())
        _compare(self._sampled_names, self._samples, self._samples_now())

    def _counts_now(self) -> list[int]:
        return list(map(_writes, self._counting))

    def _samples_now(self) -> list[bytes]:
        """Those of the host, and behind them all of each device at once."""
        by_device: defaultdict[torch.device, list[int]] = defaultdict(list)
        middles = tuple(self._middles.values())
        for number, middle in enumerate(middles):
            by_device[middle.device].append(number)
        samples = [b""] * len(middles)
        for device, numbers in by_device.items():
            some = [middles[number] for number in numbers]
            ends = accumulate(middle.numel() for middle in some)
            raw = gathered(some, device).numpy().tobytes()
            for number, end in zip(numbers, ends, strict=True):
                samples[number] = raw[end - middles[number].numel() : end]
        return [*self._on_host.now(), *samples]


class HostMiddles:
    """Some bytes from the middle of tensors on the host, which are read where they lie: no view of them is made.

    Memory that NumPy has seen could not be freed by its owner any more.

    Args:
        places: address and bytes of each tensor. Whoever calls has looked that it is there.
    """

    def __init__(self, places: Sequence[tuple[int, int]]) -> None:
        self._sizes = [min(nbytes, SAMPLE_BYTES) for _, nbytes in places]
        self._starts = [address + _offset(nbytes) for address, nbytes in places]
        self._read = bytearray(SAMPLE_BYTES * len(places))

    def now(self) -> list[bytes]:
        """These bytes, of each."""
        if not self._sizes:
            return []
        begin = ctypes.addressof(ctypes.c_char.from_buffer(self._read))
        steps = range(0, len(self._read), SAMPLE_BYTES)
        move_each(range(begin, begin + len(self._read), SAMPLE_BYTES), self._starts, self._sizes)
        return [bytes(self._read[at : at + nbytes]) for at, nbytes in zip(steps, self._sizes, strict=True)]


def _offset(nbytes: int) -> int:
    """Where the middle of so many bytes begins."""
    return max(nbytes - SAMPLE_BYTES, 0) // 2


def _middle(raw: torch.Tensor) -> torch.Tensor:
    """Some bytes from the middle of a tensor, as a view."""
    start = _offset(raw.numel())
    return raw[start : start + SAMPLE_BYTES]


def _compare(names: Sequence[str], then: Sequence[object], now: Sequence[object]) -> None:
    if now == then:
        return
    changed = [name for name, was, stands in zip(names, then, now, strict=True) if was != stands]
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    raise CheckpointError(
        f"tensor '{changed[0]}'{more} was changed or freed by its owner since the version was lent; leave lent tensors "
        "as they are until the version is unregistered, or register a copy"
    )
