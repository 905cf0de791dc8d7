"""What is asked for in an update of a parameter server."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

from ckpt_transport.checkpoint import StoredVersion
from ckpt_transport.config import Config
from ckpt_transport.errors import JoinError, UpdateAbortedError
from ckpt_transport.service.base import WHOLE, BroughtPart
from ckpt_transport.service.sink_handles import LocatedSinks

MOST_CHARACTERS = 120
"""So much of an option is said in an error."""


class Asked(NamedTuple):
    """Says which version is to be brought, and where to.

    Attributes:
        version: its name.
        sinks: chooses those that are to get it; only rank 0 needs to know.
        part: which tensors.
        mapping: by which it was taken in, in words.
        call: the method by which it is brought; ``publish`` is an update, too.
    """

    version: str
    sinks: Callable[[], LocatedSinks]
    part: BroughtPart = WHOLE
    mapping: str = ""
    call: str = "update"

    def options(self, stored: StoredVersion, config: Config) -> dict[str, str]:
        """What all source ranks must ask for alike, in words; of a version of which this one holds a part."""
        said = {
            "call": f"{self.call}()",
            "only": "None" if self.part.only is None else _short(sorted(self.part.only)),
            "base": f"'{self.part.base or stored.base}'",
            "delta": "'off'" if config.delta == "off" else "'on' or 'auto'",
        }
        return said | ({"mapping": _short(self.mapping or "None")} if stored.manifest.tensors else {})

    def located(self) -> LocatedSinks:
        """The sinks.

        Raises:
            UpdateAbortedError: the process of one is gone, or does not answer; names it.
            ConfigError: they make no sense.
        """
        try:
            return self.sinks()
        except JoinError as error:
            raise UpdateAbortedError(
                f"the update failed ({error}); it changed nothing: every sink is as it was before"
            ) from error


def _short(said: object) -> str:
    """Long options are told apart by a digest."""
    text = str(said)
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]}... (sha256 {sha256(text.encode()).hexdigest()[:12]})"
