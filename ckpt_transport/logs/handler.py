"""A program that leaves its logs to us gets them on standard error, in the format that it wants."""

from __future__ import annotations

import logging
import sys
import threading
from importlib.metadata import entry_points

from ckpt_transport.logs.formats import JsonLines, TextLines

FORMATS = {"json": JsonLines, "text": TextLines}
GROUPS = ("ckpt_transport.transports", "ckpt_transport.engines", "ckpt_transport.quantizers", "ckpt_transport.handles")
_lock = threading.Lock()
_handler: logging.Handler | None = None


def write_logs(form: str) -> None:
    """Write what the library, its plugins and adapters log, from level INFO, to standard error.

    What other packages log is left to them and to the program. A second call changes the format.

    Args:
        form: ``text`` or ``json``.
    """
    global _handler
    with _lock:
        if _handler is None:
            _handler = logging.StreamHandler(sys.stderr)
            for name in _ours():
                logger = logging.getLogger(name)
                logger.addHandler(_handler)
                logger.setLevel(logging.INFO)
                logger.propagate = False
        _handler.setFormatter(FORMATS[form]())


def _ours() -> set[str]:
    plugins = (point for group in GROUPS for point in entry_points(group=group))
    return {"ckpt_transport"} | {point.module.partition(".")[0] for point in plugins}
