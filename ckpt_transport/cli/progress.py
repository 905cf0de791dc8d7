"""Progress is shown as bars on a terminal and as plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ckpt_transport.sizes import size

LINE_SECONDS = 2.0
"""Plain lines come no closer together than this."""


@contextmanager
def progress(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function that takes bytes done and bytes in all, and shows them until the block ends."""
    if console.is_terminal and not console.quiet:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True))
        with Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield _lines(console, what)


@contextmanager
def bar(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function that takes how much is done and how much there is, and shows it until the block ends.

    The bar moves to and fro until that is known. Where there is no terminal, nothing is shown.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    shows = console.is_terminal and not console.quiet
    with Progress(*columns, console=console, transient=True, disable=not shows) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _lines(console: Console, what: str) -> Callable[[int, int], None]:
    started = time.monotonic()
    next_line = 0.0
    finished = False

    def show(done: int, total: int) -> None:
        nonlocal next_line, finished
        seconds = time.monotonic() - started
        if (done < total and seconds < next_line) or finished:
            return
        finished = done >= total
        next_line = seconds + LINE_SECONDS
        rate = f" at {size(done / seconds)}/s" if seconds and done else ""
        console.print(f"{what}: {size(done)} of {size(total)}{rate}", highlight=False)

    return show
