"""``ckpt-transport`` as a process of its own.

Loading it takes a process two seconds. :class:`Command` is a child of the fork server, which has loaded it already, and
is otherwise what a shell would start; :func:`shell_command` is for tests of how the interpreter itself starts and ends.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.fleet import context
from tests.leftovers import started_here
from tests.patience import DEADLINE

ENVIRONMENT = {**os.environ, "CKPT_TRANSPORT_HEARTBEAT_INTERVAL": "0.1", "CKPT_TRANSPORT_HEARTBEAT_TIMEOUT": "60"}
"""With heartbeats that take nobody who lives for dead."""


def shell_command(*arguments: object) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "ckpt_transport", *map(str, arguments)]


def run(*arguments: object, environ: Mapping[str, str] = ENVIRONMENT) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    with running(*arguments, environ=environ) as command:
        code = command.wait()
        return subprocess.CompletedProcess(shell_command(*arguments), code, command.printed(), command.errors())


@contextmanager
def running(*arguments: object, environ: Mapping[str, str] = ENVIRONMENT) -> Iterator[Command]:
    """A command that runs, and is killed at the end of the block if it still does."""
    with tempfile.TemporaryDirectory() as folder:
        command = Command(Path(folder), [str(argument) for argument in arguments], environ)
        try:
            yield command
        finally:
            command.kill()


class Command:
    """A command that prints into files of a folder."""

    def __init__(self, folder: Path, arguments: list[str], environ: Mapping[str, str]) -> None:
        self._out, self._err = folder / "stdout", folder / "stderr"
        self._encoding = _encoding(environ)
        for file in (self._out, self._err):
            file.touch()
        self._process = context.Process(target=_run, args=(arguments, dict(environ), self._out, self._err))
        self._process.start()
        started_here(self._process)

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        self._process.join(DEADLINE)
        assert self._process.exitcode is not None, f"the command does not end; it has said: {self.errors()}"
        return self._process.exitcode

    def ended(self) -> bool:
        return not self._process.is_alive()

    def interrupt(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def printed(self) -> str:
        """What is on stdout so far."""
        return self._out.read_text(self._encoding)

    def errors(self) -> str:
        """What is on stderr so far."""
        return self._err.read_text(self._encoding)


def _encoding(environ: Mapping[str, str]) -> str:
    return environ.get("PYTHONIOENCODING", "utf-8")


def _run(arguments: list[str], environ: dict[str, str], out: Path, err: Path) -> None:
    """Be the command: the environment, signals and streams are those of a program that a shell starts."""
    os.environ.clear()
    os.environ.update(environ)
    for file, number in ((out, 1), (err, 2)):
        opened = os.open(file, os.O_WRONLY)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout = open(1, "w", encoding=_encoding(environ))  # noqa: SIM115
    sys.stderr = open(2, "w", encoding=_encoding(environ), errors="backslashreplace")  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for default in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(default, signal.SIG_DFL)
    sys.argv = ["ckpt-transport", *arguments]
    runpy.run_module("ckpt_transport", run_name="__main__", alter_sys=True)
