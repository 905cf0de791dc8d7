"""Who takes part in an update, where, and with how much memory to spare."""

from __future__ import annotations

import enum
from functools import cached_property

import msgspec

from ckpt_transport.errors import PlanError


class Role(enum.StrEnum):
    """What a participant is in an update."""

    SOURCE = "source"
    SINK = "sink"


class Participant(msgspec.Struct, frozen=True):
    """One rank of an update.

    Attributes:
        rank: 0, 1, 2, ...; sources first.
        role: source or sink.
        host: the machine it runs on; equal strings mean that shared memory can be mapped.
        budget: bytes of extra memory an update may take here.
        transports: names of those that can run here.
        whole_tensors: its loader cannot take a tensor in pieces.
        label: what people call it.
        devices: UUIDs of the GPUs it can use: of a sink the one its engine is on, of a source its current one first.
        keeps_tensors: its loader keeps tensors until it has all of a module; see :func:`most_kept`.
    """

    rank: int
    role: Role
    host: str
    budget: int
    transports: tuple[str, ...]
    whole_tensors: bool = False
    label: str = ""
    keeps_tensors: bool = False
    devices: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        """The GPU it uses where it has the choice; empty for none."""
        return self.devices[0] if self.devices else ""


class Topology(msgspec.Struct, frozen=True, dict=True):
    """All participants, in the order of their ranks."""

    participants: tuple[Participant, ...]

    def __post_init__(self) -> None:
        if [participant.rank for participant in self.participants] != list(range(len(self.participants))):
            raise PlanError("participants must have ranks 0, 1, 2, ... in order")

    @cached_property
    def sources(self) -> tuple[int, ...]:
        return tuple(p.rank for p in self.participants if p.role is Role.SOURCE)

    @cached_property
    def sinks(self) -> tuple[int, ...]:
        return tuple(p.rank for p in self.participants if p.role is Role.SINK)

    def host(self, rank: int) -> str:
        return self.participants[rank].host
