"""A launcher runs one function in several real processes, and never hangs.

Used by the conformance checks, and meant for any test that needs ranks::

    def body(context: RankContext, word: str) -> str:
        return f"{word} from rank {context.rank} of {context.world_size}"

    outcomes = launch(body, 2, "hello", deadline=20)

The function, its arguments and what it returns travel by pickle, between this process and its own children.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import torch

from ckpt_transport.control import Mailbox
from ckpt_transport.testing.context import Body, Failure, HangError, RankContext, RankOutcome

STACKS_SIGNAL = signal.SIGUSR1
START_WAIT = 120.0
"""Seconds for starting all processes; the first start on a cold machine imports torch."""
STACKS_WAIT = 20.0
"""Seconds a hanging process gets to begin writing its stacks before it is killed."""
STACKS_PAUSE = 0.5
"""Seconds of silence after which its stacks count as complete."""
HEARTBEAT = 0.2
SILENCE = 5.0


class Launcher(Protocol):
    """Describes what :func:`launch` and :func:`~ckpt_transport.testing.threads.launch_in_threads` have in common."""

    def __call__(
        self, body: Body, world_size: int, /, *args: Any, deadline: float, silence: float = SILENCE
    ) -> list[RankOutcome]: ...


def launch(body: Body, world_size: int, /, *args: Any, deadline: float, silence: float = SILENCE) -> list[RankOutcome]:
    """Call ``body(context, *args)`` in ``world_size`` processes and wait for all of them.

    Processes come from a fork server that has imported torch, so that one starts in milliseconds, and are killed when
    this process ends, however it ends.

    Args:
        body: a function that children can import by its name.
        world_size: how many ranks there are.
        args: what every rank gets besides its context.
        deadline: seconds that ``body`` gets; ranks that still run then are made to dump their stacks and are killed.
            Starting the processes is not counted.
        silence: seconds without a heartbeat after which ranks that :meth:`RankContext.watch` lose a peer.

    Returns:
        What became of each rank, in rank order. An exception in ``body`` is an outcome, and not raised here.

    Raises:
        HangError: some ranks did not end in time; carries their stacks and the outcomes of the others.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "ckpt_transport.testing"])
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(_Child(context, rank, world_size, silence, body, args)) for rank in range(world_size)
        ]
        addresses = _collect(children, START_WAIT)
        try:
            if all(child.outcome is None for child in children):
                for child in children:
                    child.answer(addresses)
                _collect(children, deadline)
        finally:
            for address in addresses.values():
                Path(address.removeprefix("ipc://")).unlink(missing_ok=True)
        outcomes = [child.outcome for child in children if child.outcome is not None]
        hanging = [child for child in children if child.outcome is None]
        if hanging:
            raise HangError(deadline, outcomes, _dump_stacks(hanging))
        return outcomes


class _Child:
    """One rank, seen from the parent. Killed when the block it is entered for ends."""

    def __init__(
        self,
        context: BaseContext,
        rank: int,
        world_size: int,
        silence: float,
        body: Body,
        args: Sequence[Any],
    ) -> None:
        self.rank = rank
        self.outcome: RankOutcome | None = None
        self.address: str | None = None
        self.connection, theirs = context.Pipe()
        # Nothing is ever written here: the kernel kills the child when the last writer, this process, is gone.
        leash, self._leash = context.Pipe(duplex=False)
        self._stacks, stacks = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(  # type: ignore[attr-defined]
            target=_main,
            args=(rank, world_size, theirs, leash, stacks, silence, body, args),
            name=f"rank-{rank}",
            daemon=True,
        )
        try:
            self.process.start()
        except BaseException:
            self._close()
            raise
        finally:
            for end in (theirs, leash, stacks):
                end.close()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self._close()

    def _close(self) -> None:
        for end in (self.connection, self._leash, self._stacks):
            end.close()

    @property
    def pending(self) -> bool:
        return self.outcome is None and self.address is None

    def answer(self, addresses: Mapping[int, str]) -> None:
        self.address = None
        with contextlib.suppress(OSError):  # it died: its end is read from the connection like any other's
            self.connection.send(dict(addresses))

    def dump_stacks(self) -> None:
        """Make it write the stacks of all its threads."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, STACKS_SIGNAL)

    def read_stacks(self, end: float) -> str:
        """What it has written, once nothing more comes."""
        text = b""
        # faulthandler does not say when it has finished
        while self._stacks.poll(STACKS_PAUSE if text else max(end - time.monotonic(), 0)):
            piece = os.read(self._stacks.fileno(), 65536)
            if not piece:
                break
            text += piece
        return text.decode(errors="replace") or "it wrote no stack: it hangs outside Python, or never began"

    def take(self) -> None:
        """Read what the child has sent, or how it died."""
        try:
            said = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            if code < 0:
                self.outcome = RankOutcome(self.rank, died=signal.Signals(-code))
            else:
                self.outcome = RankOutcome(self.rank, exit_code=code)
            return
        if isinstance(said, str):
            self.address = said
        else:
            self.outcome = said


def _collect(children: Sequence[_Child], seconds: float) -> dict[int, str]:
    """Wait until every child has said its address or its outcome; returns the addresses said."""
    end = time.monotonic() + seconds
    while pending := {child.connection: child for child in children if child.pending}:
        left = end - time.monotonic()
        if left <= 0:
            break
        for connection in wait(list(pending), left):
            pending[connection].take()  # type: ignore[index]
    return {child.rank: child.address for child in children if child.address is not None}


def _dump_stacks(hanging: Sequence[_Child]) -> dict[int, str]:
    for child in hanging:
        child.dump_stacks()
    end = time.monotonic() + STACKS_WAIT
    return {child.rank: child.read_stacks(end) for child in hanging}


def _main(
    rank: int,
    world_size: int,
    connection: Connection,
    leash: Connection,
    stacks: Connection,
    silence: float,
    body: Callable[..., Any],
    args: Sequence[Any],
) -> None:
    _die_with(leash)
    faulthandler.register(STACKS_SIGNAL, file=stacks.fileno(), all_threads=True)
    torch.set_num_threads(1)

    def take_part() -> Any:
        with Mailbox(interval=HEARTBEAT, timeout=silence) as mailbox:
            connection.send(mailbox.address)
            return body(RankContext(rank, world_size, mailbox, connection.recv()), *args)

    outcome = RankOutcome.of(rank, take_part)
    try:
        connection.send(outcome)
    except Exception:
        connection.send(RankOutcome(rank, failure=Failure("PicklingError", "cannot be sent", traceback.format_exc())))
    faulthandler.unregister(STACKS_SIGNAL)


def _die_with(leash: Connection) -> None:
    """Have the kernel kill this process as soon as the other end of ``leash`` is closed."""
    fcntl.fcntl(leash, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(leash, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(leash, fcntl.F_SETFL, fcntl.fcntl(leash, fcntl.F_GETFL) | os.O_ASYNC)
    if leash.poll():
        os.kill(os.getpid(), signal.SIGKILL)
