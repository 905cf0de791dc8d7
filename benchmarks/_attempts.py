"""Measures as many rows as there is time for, also where one of them cannot be measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console

from benchmarks._row import Row

console = Console(stderr=True, soft_wrap=True)
Seconds = Annotated[float, typer.Option(help="Begin no row after so many seconds.")]


class Attempts:
    """Begins what is to be measured while there is time, and goes on to the next where it fails.

    Args:
        seconds: after which nothing is begun any more. What runs then, ends.

    Attributes:
        failed: what was to be measured and could not be.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self._seconds = seconds
        self._began = time.monotonic()
        self.failed: list[str] = []

    def rows(self, what: str, measured: Iterator[Row]) -> Iterator[Row]:
        """The rows of a generator, which is not begun when the time is over."""
        if time.monotonic() - self._began > self._seconds:
            console.print(f"{what}: not run: {self._seconds:g} s are over")
            return
        try:
            yield from measured
        except Exception:
            console.print_exception()
            console.print(f"{what}: failed")
            self.failed.append(what)

    def end(self) -> None:
        """Leave with an exit status that says whether all that was begun was measured."""
        if self.failed:
            console.print(f"failed: {', '.join(self.failed)}")
            raise typer.Exit(1)
