"""A world says which source rank a process is, of how many, and who said so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from ckpt_transport.errors import ConfigError


@dataclass(frozen=True, slots=True)
class World:
    """Says how many source ranks share a version, and which one this is.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        origin: what the size was taken from, as ``WORLD_SIZE=4``.
    """

    rank: int
    size: int
    origin: str

    @classmethod
    def find(cls, rank: int | None, size: int | None, environ: Mapping[str, str] = os.environ) -> Self:
        """From arguments and, where they are None, from ``RANK`` and ``WORLD_SIZE``, else 0 of 1.

        Raises:
            ConfigError: one is no whole number, or the rank is not one of the world.
        """
        rank, rank_origin = (_from(environ, "RANK", 0)) if rank is None else (rank, f"rank={rank}")
        size, size_origin = (_from(environ, "WORLD_SIZE", 1)) if size is None else (size, f"world_size={size}")
        for given, name in ((rank, "rank"), (size, "world_size")):
            if not isinstance(given, int):
                raise ConfigError(f"{name} is {given!r} and must be a whole number; {FOR_ONE_SOURCE}")
        if not 0 <= rank < size:
            raise ConfigError(
                f"rank {rank} is not one of {size} sources ({rank_origin}, {size_origin}); {FOR_ONE_SOURCE}"
            )
        return cls(rank, size, size_origin)

    @property
    def expectation(self) -> str:
        """Why others are waited for, and how to do without them."""
        others = "1 other source is" if self.size == 2 else f"{self.size - 1} other sources are"
        return f"{others} expected because {self.origin}; {FOR_ONE_SOURCE}"


FOR_ONE_SOURCE = "for one source pass rank=0, world_size=1 (--rank 0 --world-size 1)"


def _from(environ: Mapping[str, str], name: str, default: int) -> tuple[int, str]:
    text = environ.get(name)
    if text is None:
        return default, f"{name} is not set"
    try:
        return int(text), f"{name}={text}"
    except ValueError as error:
        raise ConfigError(
            f"{name} in the environment is '{text}' and must be a whole number; unset it, or {FOR_ONE_SOURCE}"
        ) from error
