"""Commands print through this module, so that what they print never decides how they end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console

from ckpt_transport.reasons import named_reason

UNFOLDED = 10_000
"""Columns of what is no terminal."""


class Output(Console):
    """Writes to standard output or standard error. When that cannot be written, the command goes on without.

    Text is printed as it is: what stands in brackets or between colons, in a name or an address, is no style and no
    emoji. Where it is no terminal, as a pipe or a log, no line is folded, unless ``COLUMNS`` says how many there are.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = UNFOLDED

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except (OSError, ValueError) as error:
            self._drop()
            if not self.stderr:
                say_on_stderr(f"what follows is not printed: {error}")

    def write_bytes(self, data: bytes) -> None:
        """Write a line of JSON, or what else is not for people."""
        if sys.stdout is None:  # it was closed before this program began
            return
        try:
            sys.stdout.buffer.write(data + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            self._drop()
        except (OSError, ValueError) as error:
            self._drop()
            say_on_stderr(f"the document is not printed: {error}")

    def on_broken_pipe(self) -> None:
        """Rich would end the program here."""
        self._drop()

    def _drop(self) -> None:
        """Also what Python still has to write when it ends."""
        self.quiet = True
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)


def say_on_stderr(text: str) -> None:
    """Print a line to standard error."""
    Output(stderr=True).print(text, highlight=False, soft_wrap=True)


@contextmanager
def after_commit(what: str) -> Iterator[None]:
    """Do what remains when the new version stands: an error is printed, and decides nothing.

    Args:
        what: what cannot be done if it fails, as "the report cannot be shown".
    """
    try:
        yield
    except Exception as error:
        say_on_stderr(f"the update is done, but {what}: {named_reason(error)}")
