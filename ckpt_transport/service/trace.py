"""A setting asks for a file of an update's timeline; it is checked before the update and written after it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ckpt_transport.config import Config
from ckpt_transport.errors import ConfigError
from ckpt_transport.paths import may_be_written
from ckpt_transport.update.report import Report

logger = logging.getLogger(__name__)


def check_trace(config: Config) -> None:
    """Make the directory for the trace of an update that is to come.

    Raises:
        ConfigError: it could not be written.
    """
    path = Path(config.trace)
    if not config.trace:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another place for the trace") from error
    if not may_be_written(path) or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path} cannot be a file that is written; choose another place for the trace")


def keep_trace(report: Report, config: Config) -> None:
    """Write the trace of an update that has been; if that fails, it is logged."""
    if not config.trace:
        return
    try:
        report.write_trace(Path(config.trace))
    except OSError as error:
        logger.warning("the update is done, and its trace cannot be written to %s: %s", config.trace, error)
