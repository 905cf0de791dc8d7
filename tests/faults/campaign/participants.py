"""The processes of the campaign: sinks that serve, a source that updates, holders, and who leads a join."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from ckpt_transport import Config, Holder, Joiner, ParameterServer
from ckpt_transport.errors import CkptTransportError, TaintedError
from ckpt_transport.update.report import Report
from ckpt_transport_torch import attach
from tests.faults.campaign.witness import Half, Witness, fingerprint, loader_of, passed
from tests.fleet import context
from tests.leftovers import started_here
from tests.patience import PATIENCE

HEARTBEAT_TIMEOUT = 6.0
SETTINGS: Mapping[str, Any] = {
    "heartbeat_interval": 0.1,
    "heartbeat_timeout": HEARTBEAT_TIMEOUT,
    "join_timeout": 20.0,
    "update_timeout": 40.0,
    "bucket_bytes": "300KiB",
    "ring_depth": 3,
}
BOUND = 120.0
"""Seconds after which something that should have ended counts as hanging: twice what the settings allow."""
PASS_PAUSE = 0.002


class Hang(AssertionError):
    """A participant did not answer in time."""


@dataclass(frozen=True)
class Served:
    """What a sink says of itself.

    Attributes:
        refused: the name of the error that a forward pass raised now; empty when it was served.
        weights: a fingerprint of every byte.
        seen: what forward passes have returned since the last time.
        descriptors: how many file descriptors are open.
    """

    version: str
    tainted: str
    refused: str
    weights: str
    seen: frozenset[bytes]
    descriptors: int


@dataclass(frozen=True)
class Said:
    """How an update ended, as its leader says.

    Attributes:
        kind: ``committed``, the name of the error that was raised, or ``died``.
        ours: whether that error is one of the library's, or an interrupt that was asked for.
        lost: text that names those who are said to be gone, or to have left.
        tainted: text that names those who are said to refuse, by the error.
        serving: text that names those who are said to serve the new version although the update failed.
        seconds: how long it took.
        sent: what was sent, where deltas may be.
    """

    kind: str
    ours: bool = True
    message: str = ""
    lost: str = ""
    tainted: str = ""
    serving: str = ""
    seconds: float = field(default=0.0, compare=False)
    sent: str = field(default="", compare=False)


class Process:
    """One participant. It answers one question at a time; who is told to go on answers later."""

    def __init__(self, name: str, main: Callable[..., None], *args: Any) -> None:
        self.name = name
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_run, args=(main, name, *args, theirs), daemon=True)
        self.process.start()
        started_here(self.process)
        theirs.close()
        self.first: Any = self.answer()

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def ask(self, *question: Any) -> Any:
        self.tell(*question)
        return self.answer()

    def tell(self, *question: Any) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(question)

    def answer(self) -> Any:
        """What it says; None when it has died.

        Raises:
            Hang: nothing comes.
        """
        try:
            if not self._pipe.poll(BOUND):
                self.dump_stacks()
                raise Hang(f"{self.name} says nothing for {BOUND:g} s")
            return self._pipe.recv()
        except (EOFError, OSError):
            self.process.join(BOUND)
            if self.process.is_alive():
                self.dump_stacks()
                raise Hang(f"{self.name} has closed its pipe and does not end") from None
            return None

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def has_ended(self) -> bool:
        """Whether it ends, soon. Where it does not, its stacks are on standard error."""
        self.process.join(BOUND)
        self.dump_stacks()
        return not self.alive

    def dump_stacks(self) -> None:
        """Have it write to standard error what each of its threads does, if it lives."""
        self.signal(signal.SIGUSR1)
        self.process.join(1)

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.alive:
                os.kill(self.pid, number)

    def end(self) -> None:
        """Politely, then not."""
        self.tell("stop")
        self.process.join(PATIENCE)
        if self.alive:
            self.process.kill()
            self.process.join()
        self._pipe.close()


def _run(main: Callable[..., None], name: str, *args: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1)
    torch.set_num_threads(1)
    with contextlib.suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        main(name, *args)


def asked(pipe: Connection) -> Any:
    """The next question. It looks around meanwhile: another thread may take a signal, and wakes nobody who reads."""
    while not pipe.poll(0.5):
        pass
    return pipe.recv()


# -- engines --------------------------------------------------------------------------------------------------------


def sink(name: str, seed: int, half: Half, pipe: Connection) -> None:
    """Serve forward passes one after the other, and answer questions about them. Who has a half has a loader."""
    module, settings = Witness(seed, half), Config.load(**SETTINGS)
    loading: dict[str, Any] = {}
    if half is not None:
        loading = {"loader": loader_of(module, half), "warm": dict(Witness(seed).state_dict())}
    seen: set[bytes] = set()

    def serve_for_ever() -> None:
        while True:
            with contextlib.suppress(CkptTransportError):
                seen.add(passed(module))
            time.sleep(PASS_PAUSE)

    with attach(module, version=f"v{seed}", label=name, config=settings, **loading) as attachment:
        threading.Thread(target=serve_for_ever, daemon=True).start()
        pipe.send(attachment.address)
        while asked(pipe)[0] != "stop":
            refused = ""
            try:
                seen.add(passed(module))
            except CkptTransportError as error:
                refused = type(error).__name__
            since, descriptors = frozenset(seen), len(os.listdir("/proc/self/fd"))
            seen.difference_update(since)
            weights = fingerprint(module.state_dict())
            pipe.send(Served(attachment.version, attachment.tainted, refused, weights, since, descriptors))


# -- who brings a version -------------------------------------------------------------------------------------------


def source(name: str, transport: str, commit: str, delta: str, pipe: Connection) -> None:
    """Register the weights of a seed and update, or publish them where deltas are sent, as often as asked."""
    last = ""
    with ParameterServer(Config.load(transport=transport, commit=commit, delta=delta, **SETTINGS)) as server:
        pipe.send("")
        while (question := asked(pipe))[0] != "stop":
            if question[0] == "ping":
                pipe.send("pong")
                continue
            _, seed, sinks = question
            if delta != "off":
                tensors = dict(Witness(seed).state_dict())
                pipe.send("ready")
                pipe.send(_timed(partial(server.publish, f"v{seed}", tensors, sinks)))
                continue
            if last:
                server.unregister(last)
            last = f"v{seed}"
            server.register(f"v{seed}", tensors=dict(Witness(seed).state_dict()))
            pipe.send("ready")
            pipe.send(_timed(partial(server.update, f"v{seed}", sinks)))


def holder(name: str, seed: int, transport: str, path: str, pipe: Connection) -> None:
    """Hold the weights of a seed, for joins."""
    config = Config.load(transport=transport, **SETTINGS)
    with Holder(f"v{seed}", tensors=dict(Witness(seed).state_dict()), config=config) as held:
        held.start()
        held.address_file.save(Path(path), config)
        pipe.send("")
        asked(pipe)


def joiner(name: str, transport: str, paths: Sequence[str], pipe: Connection) -> None:
    """Lead one join after the other, from what holders hold."""
    leader = Joiner([Path(path) for path in paths], Config.load(transport=transport, **SETTINGS))
    pipe.send("")
    while (question := asked(pipe))[0] != "stop":
        _, seed, sinks = question
        pipe.send("ready")
        pipe.send(_timed(lambda seed=seed, sinks=sinks: leader.update(f"v{seed}", sinks)))  # type: ignore[misc]


def _timed(update: Callable[[], Report | None]) -> Said:
    began = time.monotonic()
    return replace(_attempt(update), seconds=time.monotonic() - began)


def _attempt(update: Callable[[], Report | None]) -> Said:
    try:
        report = update()
    except KeyboardInterrupt as error:
        return Said("KeyboardInterrupt", message=str(error.__cause__))
    except TaintedError as error:
        return Said("TaintedError", True, str(error), tainted=" ".join(error.sinks), serving=" ".join(error.serving))
    except Exception as error:
        return Said(type(error).__name__, isinstance(error, CkptTransportError), str(error))
    assert report is not None
    left = [f"{address}: {why}" for address, why in report.left.items()]
    sent = "" if report.delta is None else str(report.delta)
    return Said("committed", lost=" ".join([*report.lost, *left]), sent=sent)
