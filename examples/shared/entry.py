"""How a demonstration is started, and how it ends when it is told to."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import typer

from ckpt_transport.cli.encoding import write_anything


def run(main: Callable[..., object]) -> None:
    """Run ``main`` with the options that its signature names. A signal ends it by an exception, so it tidies up."""
    write_anything()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, lambda received, frame: sys.exit(128 + received))
    typer.run(main)
