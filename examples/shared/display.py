"""What demonstrations show: with colours and moving bars on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ckpt_transport import Report
from ckpt_transport.cli.progress import progress
from ckpt_transport.planning import explain

PICTURE_WIDTH, PICTURE_MARGIN = 72, 48


class Display:
    """Prints to standard output."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)

    @property
    def width(self) -> int:
        return self._console.width

    def heading(self, title: str) -> None:
        self._console.print()
        self._console.rule(Text(title, style="bold"), align="left")

    def line(self, text: str, style: str = "") -> None:
        """Print one paragraph; long ones are wrapped on a terminal only."""
        self._console.print(Text(text, style=style), soft_wrap=not self._console.is_terminal)

    def block(self, text: str, title: str) -> None:
        """Print lines whose layout matters."""
        content = Text(text, no_wrap=True, overflow="ellipsis")
        if self._console.is_terminal:
            self._console.print(Panel(content, title=title, title_align="left", expand=False))
        else:
            self._console.print(Text(f"{title}\n{text}"), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table whose first column is words, and whose others are figures."""
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        self._console.print(table)

    def update(self, report: Report) -> None:
        """Print the plan of an update and its timeline."""
        self.block(explain(report.plan), "The plan")
        width = max(min(PICTURE_WIDTH, self.width - PICTURE_MARGIN), 20)
        self.block(report.picture(width), "Timeline: ▒ fill  ░ transfer  █ apply")

    def tokens(self, label: str, tokens: Sequence[int]) -> None:
        self.line(f"{label:8}{' '.join(f'{token:4}' for token in tokens)}")

    def progress(self, title: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """A bar for as long as the context lasts: call what it gives with the bytes done and the bytes in all."""
        return progress(self._console, title)

    @contextmanager
    def waiting(self, title: str) -> Iterator[None]:
        """Say of what says nothing itself that it goes on, and in the end how many seconds it took."""
        started = time.monotonic()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as spinner:
            spinner.add_task(title, total=None)
            yield
        self.line(f"{title}: {time.monotonic() - started:,.1f} s")

    def conclude(self, problems: Sequence[str], otherwise: str) -> None:
        """Print what did not hold, or ``otherwise`` when everything did."""
        self.heading("Result")
        for problem in problems:
            self.line(f"NOT AS PROMISED: {problem}", "bold red")
        if not problems:
            self.line(otherwise, "bold green")


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def mebibytes(nbytes: float) -> str:
    return f"{nbytes / 2**20:,.2f} MiB"
