"""An update can be made by several methods, which have the names that checkpoint-engine gives them."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ckpt_transport.cli.options import OptionsError
from ckpt_transport.service import ParameterServer
from ckpt_transport.service.fleet import Updates
from ckpt_transport.service.subset import chosen
from ckpt_transport.update import Report
from ckpt_transport.update.progress import Progress


class UpdateMethod(enum.StrEnum):
    """Names a way to bring a version to its sinks."""

    BROADCAST = "broadcast"
    P2P = "p2p"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Updates the sinks that are chosen by P2P, whoever dies on the way."""

    server: ParameterServer
    ranks: Sequence[int] | None

    @property
    def rank(self) -> int:
        return self.server.rank

    def update(
        self,
        version: str,
        sinks: Sequence[str] | None = None,
        progress: Progress | None = None,
        before_hold: Callable[[], None] | None = None,
    ) -> Report | None:
        return self.server.update_p2p(version, sinks, self.ranks, progress, before_hold)


@dataclass(frozen=True, slots=True)
class _Others:
    """Updates the sinks that are not chosen by a broadcast."""

    server: ParameterServer
    ranks: Sequence[int]

    @property
    def rank(self) -> int:
        return self.server.rank

    def update(
        self,
        version: str,
        sinks: Sequence[str] | None = None,
        progress: Progress | None = None,
        before_hold: Callable[[], None] | None = None,
    ) -> Report | None:
        everybody = self.server.config.sinks if sinks is None else tuple(sinks)
        chosen(everybody, self.ranks)
        others = tuple(address for rank, address in enumerate(everybody) if rank not in self.ranks)
        return self.server.update(version, others, progress, before_hold)


def steps(server: ParameterServer, method: UpdateMethod, ranks: Sequence[int] | None) -> Iterator[Updates]:
    """List the updates that a method is made of, in order."""
    if method is UpdateMethod.P2P:
        yield _Chosen(server, ranks)
    elif method is UpdateMethod.BROADCAST or ranks is None:
        yield server
    else:
        if len(set(ranks)) < len(server.config.sinks):
            yield _Others(server, ranks)
        yield _Chosen(server, ranks)


def parse_ranks(text: str) -> list[int]:
    """Read numbers from text such as ``0,2`` or ``4-7``.

    Raises:
        OptionsError: it is no list of numbers and ranges.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise OptionsError(f"--ranks is '{text}' and must be numbers and ranges, as '0,2' or '4-7'")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found
