"""What the server and its clients say to each other, as JSON."""

from __future__ import annotations

import msgspec


class Generate(msgspec.Struct, frozen=True):
    """Asks to continue a prompt, greedily."""

    prompt: tuple[int, ...]
    max_tokens: int = 16


class Generated(msgspec.Struct, frozen=True):
    """Answers with new tokens.

    Attributes:
        tokens: the new tokens.
        versions: that computed each token; more than one when an update came in between.
        moments: when each token was there, in seconds on this machine's monotonic clock.
    """

    tokens: tuple[int, ...]
    versions: tuple[str, ...]
    moments: tuple[float, ...]


class Compare(msgspec.Struct, frozen=True):
    """Asks to compare every parameter with a checkpoint, bit by bit."""

    directory: str


class Compared(msgspec.Struct, frozen=True):
    """Says how many elements of how many parameters one worker compared, and which differ."""

    rank: int
    parameters: int
    elements: int
    mismatches: dict[str, int]


class Inspect(msgspec.Struct, frozen=True):
    """Asks which version is served."""


class Inspected(msgspec.Struct, frozen=True):
    """Says what one worker serves."""

    rank: int
    version: str
    parameters: int
    nbytes: int


class Failed(msgspec.Struct, frozen=True):
    """Says why a request cannot be served."""

    error: str


class Serving(msgspec.Struct, frozen=True):
    """What the first worker prints when all of them serve: its port, and each worker's address for updates."""

    port: int
    sinks: tuple[str, ...]


Request = Generate | Compare | Inspect
Reply = Generated | Compared | Inspected | Failed
encode = msgspec.json.Encoder().encode
