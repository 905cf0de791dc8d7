"""An update can be made by several methods, which have the names that checkpoint-engine gives them."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ckpt_transport.cli.options import OptionsError

if TYPE_CHECKING:
    from ckpt_transport.service import ParameterServer
    from ckpt_transport.service.fleet import Updates
    from ckpt_transport.update import Report


class UpdateMethod(enum.StrEnum):
    """Names a way to bring a version to its sinks."""

    BROADCAST = "broadcast"
    P2P = "p2p"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class _Step:
    """One update of a method; see :class:`~ckpt_transport.service.fleet.Updates`."""

    rank: int
    update: Callable[..., Report | None]


def steps(server: ParameterServer, method: UpdateMethod, ranks: Sequence[int] | None) -> Iterator[Updates]:
    """List the updates that a method is made of, in order."""

    def by_p2p(version: str, sinks: Sequence[str] | None = None, *told: Any, **named: Any) -> Report | None:
        return server.update_p2p(version, sinks, ranks, *told, **named)

    if method is UpdateMethod.P2P:
        yield _Step(server.rank, by_p2p)
    elif method is UpdateMethod.BROADCAST or ranks is None:
        yield server
    else:
        others = tuple(address for rank, address in enumerate(server.config.sinks) if rank not in ranks)
        if others:
            yield _Step(server.rank, partial(server.update, sinks=others))
        yield _Step(server.rank, by_p2p)


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
