"""A source rank tells the others of which updates it takes no part, so that they do not wait for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from ckpt_transport.errors import CkptTransportError
from ckpt_transport.reasons import named_reason
from ckpt_transport.service.asked_versions import AskedVersions
from ckpt_transport.service.rendezvous import Rendezvous

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class Absences:
    """Tells them, once for each version.

    Args:
        meeting: where the others hear it; None where there are none.

    Attributes:
        asked: which versions were asked for here.
        told: the versions of which others were told that this rank does not come.
    """

    def __init__(self, meeting: Rendezvous | None) -> None:
        self._meeting = meeting
        self.asked = AskedVersions()
        self.told: set[str] = set()

    def telling(self, version: str, take_in: Callable[[], Result]) -> Result:
        """Take a version in by ``take_in``; if that fails, the other ranks hear why it is not sent."""
        try:
            taken = take_in()
        except BaseException as error:
            self.be_absent(version, error, "it could not take the version in")
            raise
        self.take_back(version)
        return taken

    def be_absent(self, version: str, error: BaseException, reason: str) -> None:
        """Say that an error keeps this rank away; of an interrupt only where that takes no time."""
        if isinstance(error, Exception) or (self._meeting is not None and self._meeting.is_open):
            self.tell(version, f"{reason}: {named_reason(error)}")
            self.told.add(version)

    def take_back(self, version: str) -> None:
        """This rank comes for that version again."""
        if version in self.told:
            self.tell(version, "")
            self.told.remove(version)

    def say_given_up(self, version: str) -> None:
        """Rank 0 hears which other versions this rank has given up: an interrupt may have kept it from saying so."""
        for late, why in self.asked.given_up_before(version).items():
            if late not in self.told:
                self.tell(late, why)
                self.told.add(late)
            self.asked.goes_on(late)

    def tell(self, version: str, reason: str) -> None:
        """Tell the other ranks that this one does not come; with an empty reason, that it does again."""
        if self._meeting is not None:
            try:
                self._meeting.tell_absence(version, reason)
            except CkptTransportError as error:
                logger.warning("the other source ranks cannot be told that this one has failed: %s", error)
