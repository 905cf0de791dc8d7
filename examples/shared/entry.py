"""How a demonstration is started, and how it ends."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import httpx
import msgspec
import typer

from ckpt_transport import CkptTransportError
from ckpt_transport.cli.encoding import write_anything
from examples.shared.display import Display
from tests.support.serving import ServeError


class Result(Protocol):
    """What a demonstration found: a msgspec Struct.

    Attributes:
        problems: what was not as promised.
        verdict: what is to be said when everything was.
    """

    @property
    def problems(self) -> tuple[str, ...]: ...

    @property
    def verdict(self) -> str: ...


def run(main: Callable[..., object]) -> None:
    """Run ``main`` with the options that its signature names. A signal ends it by an exception, so it tidies up."""
    write_anything()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, lambda received, frame: sys.exit(128 + received))
    typer.run(main)


def show(scenes: Callable[[Display, Path], Result], keep: Path | None = None, json: Path | None = None) -> None:
    """Play the scenes and print what came of them.

    Args:
        scenes: gets what to print with, and a folder to work in.
        keep: that folder; by default a new one, which is removed in the end.
        json: the file to write the result to, for programs.

    Raises:
        typer.Exit: with status 1, because something was not as promised, or did not work.
    """
    display = Display()
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ckpt-transport-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            result = scenes(display, folder)
        except (CkptTransportError, ServeError, httpx.HTTPError, OSError) as error:
            display.heading("The demonstration failed")
            display.line(f"{type(error).__name__}: {error}", "bold red")
            for note in getattr(error, "__notes__", ()):
                display.line(note)
            raise typer.Exit(1) from error
    display.conclude(result.problems, result.verdict)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_bytes(msgspec.json.format(msgspec.json.encode(result)))
    if result.problems:
        raise typer.Exit(1)
