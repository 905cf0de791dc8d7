"""What is asked for in an update of a parameter server."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ckpt_transport.errors import JoinError, UpdateAbortedError
from ckpt_transport.service.base import WHOLE, BroughtPart
from ckpt_transport.service.sink_handles import LocatedSinks


class Asked(NamedTuple):
    """Says which version is to be brought, and where to.

    Attributes:
        version: its name.
        sinks: chooses those that are to get it; only rank 0 needs to know.
        part: which tensors.
    """

    version: str
    sinks: Callable[[], LocatedSinks]
    part: BroughtPart = WHOLE

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
