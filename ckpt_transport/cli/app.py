"""The application lists all commands and turns errors into exit codes."""

from __future__ import annotations

import enum
import inspect
import os
import re
import signal
import sys
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from ckpt_transport.cli import (
    dashboard,
    doctor,
    join,
    plan,
    resolve,
    rollback,
    serve,
    simulate,
    transports,
    update,
    version,
    warm_up,
)
from ckpt_transport.cli.encoding import write_anything
from ckpt_transport.cli.loading import loads_first
from ckpt_transport.cli.options import OptionsError
from ckpt_transport.cli.output import Output
from ckpt_transport.errors import CkptTransportError, TaintedError, UpdateAbortedError
from ckpt_transport.release import RELEASE

HELP = """Put new weights into running LLM inference engines, without a restart.

Exit codes: 0 done; 1 refused or failed, and every sink still serves its old version; 2 options that do not exist,
cannot be read or do not go together; 3 failed half-way, and the sinks that are named must not serve until an update
succeeds; 4 done, but an engine was lost or could not be resumed, or the second step of '--update-method all' failed;
130 or 143 interrupted before or after an update.

Settings come from a TOML file (--config, or CKPT_TRANSPORT_CONFIG), from CKPT_TRANSPORT_* variables, and from options,
each overruling the one before.

With --json a command prints one document for programs on standard output, and what people may want to know meanwhile on
standard error. Where it fails it prints no document: the exit code says how, and standard error why.
"""


class LogFormat(enum.StrEnum):
    """For people, or for programs."""

    TEXT = "text"
    JSON = "json"


def _flowing(text: str) -> str:
    """The text with each of its paragraphs on one line, which a terminal breaks where it is narrow."""
    return re.sub(r"(?<=\S)\n(?=\S)", " ", inspect.cleandoc(text))


app = typer.Typer(help=_flowing(HELP), no_args_is_help=True, pretty_exceptions_enable=False)


def _say_version(asked: bool) -> None:
    if asked:
        Output().print(f"ckpt-transport {RELEASE}", highlight=False)
        raise typer.Exit


@app.callback(help=_flowing(HELP))
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_say_version, is_eager=True)
    ] = False,
    log_format: Annotated[
        LogFormat | None,
        typer.Option(help="Write a log line for each event to standard error.", show_default="from settings"),
    ] = None,
) -> None:
    """Take the options that stand before a command."""
    if log_format is not None:
        os.environ["CKPT_TRANSPORT_LOG_FORMAT"] = log_format


for name, command in (
    ("dashboard", dashboard.dashboard),
    ("doctor", doctor.doctor),
    ("transports", transports.transports),
    ("plan", plan.plan),
    ("simulate", simulate.simulate),
    ("update", update.update),
    ("rollback", rollback.rollback),
    ("serve", serve.serve),
    ("join", join.join),
    ("version", version.version),
    ("resolve", resolve.resolve),
    ("warm-up", warm_up.warm_up),
):
    app.command(name, help=_flowing(command.__doc__ or ""))(loads_first(command))


def main() -> None:
    """Run the command that the arguments ask for, and leave with its exit code."""
    write_anything()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, _terminate)
    try:
        app()
    except CkptTransportError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except SystemExit as ending:
        rolled_back = _rolled_back(ending)
        if rolled_back is None:
            raise
        _fail(rolled_back)


def _fail(error: CkptTransportError) -> NoReturn:
    console = Output(stderr=True)
    console.print(
        Text.assemble((type(error).__name__, "bold red"), f": {error}" if str(error) else ""),
        highlight=False,
        soft_wrap=True,
    )
    for note in getattr(error, "__notes__", ()):
        console.print(note, highlight=False, soft_wrap=True)
    sys.exit(_exit_code(error))


def _exit_code(error: CkptTransportError) -> int:
    match error:
        case TaintedError():
            return 3
        case OptionsError():
            return 2
        case _:
            return 1


def _rolled_back(ending: SystemExit) -> CkptTransportError | None:
    """What became of the update that was interrupted, if one was; the interrupt's cause, that typer hands on."""
    error: BaseException | None = ending
    notes: list[str] = []
    while error is not None:
        if isinstance(error, UpdateAbortedError | TaintedError):
            for note in notes:
                error.add_note(note)
            return error
        notes += getattr(error, "__notes__", ())
        error = error.__cause__ or error.__context__
    return None


def _terminate(number: int, _: object) -> None:
    """Leave by an exception, so that shared memory and sockets are cleaned up."""
    sys.exit(128 + number)
