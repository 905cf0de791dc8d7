"""Terminals, files and pipes have any encoding: what one cannot write is written as what looks like it."""

from __future__ import annotations

import codecs
import io
import sys

ERRORS = "ckpt_transport.lookalike"
"""The name of the error handler, see :func:`codecs.register_error`."""
LOOKALIKES = str.maketrans(
    {
        "▒": "=", "░": "-", "█": "#",
        "▁": ".", "▂": ":", "▃": "-", "▄": "=", "▅": "+", "▆": "*", "▇": "%",
        "│": "|", "─": "-", "└": "+", "━": "-", "╸": "-", "╺": "-",
        "µ": "u", "·": ".", "‖": "|", "…": ".", "→": ">",
    }
)  # fmt: skip


def write_anything() -> None:
    """Let standard output and standard error write any text, whatever their encoding is."""
    codecs.register_error(ERRORS, _look_alike)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def _look_alike(error: UnicodeError) -> tuple[str | bytes, int]:
    """Of one character that cannot be encoded: what looks like it in ASCII, or its escape sequence."""
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    alike = character.translate(LOOKALIKES)
    written = alike if alike.isascii() else character.encode("ascii", "backslashreplace").decode()
    return written, error.start + 1
