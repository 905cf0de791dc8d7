"""Each update that a rank 0 leads has a token, by which others know which of two came first."""

from __future__ import annotations

import itertools
import secrets


class LeadTokens:
    """Makes those of one rank 0, in order."""

    def __init__(self) -> None:
        self._leader, self._numbers = secrets.token_hex(8), itertools.count(1)

    def next(self) -> str:
        """One that comes after all before."""
        return f"{self._leader}/{next(self._numbers)}"


def is_past(token: str, seen: str) -> bool:
    """Whether a token is the one that was seen, or comes before it: of another rank 0's nobody knows."""
    leader, _, number = token.rpartition("/")
    known, _, last = seen.rpartition("/")
    return token == seen or (leader == known != "" and (len(number), number) <= (len(last), last))
