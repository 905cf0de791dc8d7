"""What commands print, which never decides how they end."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console


class Output(Console):
    """Standard output. When nobody reads it, or it cannot be written, the command goes on without."""

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError as error:
            self._drop()
            Console(stderr=True).print(f"what follows is not printed: {error}", markup=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Rich would end the program here."""
        self._drop()

    def _drop(self) -> None:
        """Also what Python still has to write when it ends."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
