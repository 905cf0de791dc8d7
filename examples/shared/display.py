"""What the demonstration shows: with colours and moving bars on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

QUARTERS = 4


class Display:
    """Prints to standard output.

    Args:
        console: where to; by default standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console if console is not None else Console(highlight=False)

    @property
    def width(self) -> int:
        return self._console.width

    def heading(self, title: str) -> None:
        self._console.print()
        self._console.rule(Text(title, style="bold"), align="left")

    def line(self, text: str, style: str = "") -> None:
        """One paragraph; long ones are wrapped on a terminal only."""
        self._console.print(Text(text, style=style), soft_wrap=not self._console.is_terminal)

    def block(self, text: str, title: str) -> None:
        """Lines whose layout matters."""
        content = Text(text, no_wrap=True, overflow="ellipsis")
        if self._console.is_terminal:
            self._console.print(Panel(content, title=title, title_align="left", expand=False))
        else:
            self._console.print(Text(title))
            self._console.print(Text(text), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """The first column is words, the others are figures."""
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        self._console.print(table)

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A bar for as long as the context lasts: call what it gives with the bytes done and the bytes in all."""
        if not self._console.is_terminal:
            yield _Quarters(self.line, title).show
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(title, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    @contextmanager
    def waiting(self, title: str) -> Iterator[None]:
        """For what says nothing while it lasts: that it goes on, and in the end how many seconds it took."""
        started = time.monotonic()
        if self._console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            with Progress(*columns, console=self._console, transient=True) as progress:
                progress.add_task(title, total=None)
                yield
        else:
            self.line(f"{title} ...")
            yield
        self.line(f"{title}: {time.monotonic() - started:,.1f} s")


class _Quarters:
    """A line whenever another quarter is done."""

    def __init__(self, line: Callable[[str], None], title: str) -> None:
        self._line, self._title, self._shown = line, title, -1

    def show(self, done: int, total: int) -> None:
        quarter = QUARTERS * done // total if total else QUARTERS
        if quarter > self._shown:
            self._shown = quarter
            self._line(f"{self._title}: {100 * quarter // QUARTERS} % of {total / 2**20:,.1f} MiB")


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"
