"""Callers pass functions that are told how far an update is; an error of theirs never ends it."""

from __future__ import annotations

import logging

from ckpt_transport.checkpoint import Progress
from ckpt_transport.reasons import named_reason

__all__ = ["Progress", "never_raises"]

logger = logging.getLogger(__name__)


def never_raises(progress: Progress | None) -> Progress:
    """Make a function that calls ``progress``, if there is one, until that raises an error. It is logged.

    An interrupt is raised.
    """
    failed = False

    def show(done: int, total: int) -> None:
        nonlocal failed
        if failed or progress is None:
            return
        try:
            progress(done, total)
        except Exception as error:
            failed = True
            logger.warning("progress is not told any more: %s", named_reason(error))

    return show
