"""Who has the token may have the fleet serve the version before again.

A form is good once, for ten minutes, and for the fleet that it has shown. The token is typed into each: no cookie makes
a browser send it by itself, so no other site can have it sent.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from hmac import compare_digest
from pathlib import Path

from ckpt_transport.errors import CkptTransportError, ConfigError
from ckpt_transport.private_file import read_private
from ckpt_transport.reasons import named_reason

MIN_TOKEN_BYTES = 16
FORM_SECONDS = 600.0
MOST_FORMS = 64
GUESS_SECONDS = 1.0
"""After a wrong token, none is looked at for so long."""


class NotAllowedError(Exception):
    """A rollback was asked for and is not done; ``status`` is that of HTTP."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def read_token(path: Path) -> bytes:
    """Read the token from a file that only its owner can read.

    Raises:
        ConfigError: the file is missing, readable by others, or too short.
    """
    token = read_private(path, "token file")
    if len(token) < MIN_TOKEN_BYTES:
        raise ConfigError(
            f"token file {path} has {len(token)} bytes; at least {MIN_TOKEN_BYTES} are needed, as from "
            f"'openssl rand -hex 32 > {path}'"
        )
    return token


class Rollback:
    """Rolls the fleet back for who has the token.

    Args:
        token: what must be typed.
        act: does it, and returns what went wrong afterwards.

    Attributes:
        said: what became of the last one, in words; empty before there was one.
        failed: it has not been done.
    """

    def __init__(self, token: bytes, act: Callable[[], Sequence[str]]) -> None:
        self._token, self._act = hashlib.sha256(token).digest(), act
        self._forms: dict[str, tuple[float, Hashable]] = {}
        self._checking, self._acting = threading.Lock(), threading.Lock()
        self._next_guess = 0.0
        self.said, self.failed = "", False

    def form(self, shown: Hashable) -> str:
        """The name of a new form, which shows the fleet so."""
        with self._checking:
            while len(self._forms) >= MOST_FORMS:
                del self._forms[next(iter(self._forms))]
            name = secrets.token_urlsafe(16)
            self._forms[name] = time.monotonic(), shown
            return name

    def run(self, form: str, token: str, look: Callable[[], Hashable]) -> None:
        """Roll back, and remember what became of it.

        Args:
            form: its name.
            token: what was typed.
            look: shows the fleet as it is now.

        Raises:
            NotAllowedError: the token is wrong, the form is none or was used, or the fleet has changed since.
        """
        self._check_token(token)
        with self._checking:
            made, shown = self._forms.pop(form, (-FORM_SECONDS, None))
        if time.monotonic() - made > FORM_SECONDS:
            raise NotAllowedError(403, "this form was used already, or is too old; open it again")
        if not self._acting.acquire(blocking=False):
            raise NotAllowedError(409, "another rollback is under way")
        try:
            if look() != shown:
                raise NotAllowedError(409, "the fleet has changed since the form was shown; look at it again")
            self._roll_back()
        finally:
            self._acting.release()

    def _roll_back(self) -> None:
        try:
            problems = self._act()
        except CkptTransportError as error:
            self.said, self.failed = named_reason(error), True
        else:
            self.said = "; ".join(["The fleet serves the version before again", *problems])
            self.failed = False

    def _check_token(self, token: str) -> None:
        with self._checking:
            if time.monotonic() < self._next_guess:
                raise NotAllowedError(429, "a wrong token was given a moment ago; wait a second")
            if not compare_digest(hashlib.sha256(token.strip().encode()).digest(), self._token):
                self._next_guess = time.monotonic() + GUESS_SECONDS
                raise NotAllowedError(403, "that is not the token")
