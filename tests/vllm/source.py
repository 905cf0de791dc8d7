"""A source in a process of its own, for engines that live in the process of a test."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import TaintedError, UpdateAbortedError
from ckpt_transport_fp8 import quantized, read_target

ANSWER_SECONDS = 300


class Giving(BaseException):
    """Raised in the middle of an update."""


class Source:
    """Brings versions to one sink, from another process.

    Args:
        settings: of its Config.
        directories: of the versions, by name.
        sinks: the addresses of the engine's.
        targets: of versions that are quantized on their way, by name: the directory of what they are made for.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        directories: Mapping[str, Path],
        *sinks: str,
        targets: Mapping[str, Path] | None = None,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = settings, directories, sinks, targets or {}, theirs
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def update(self, version: str) -> list[str]:
        """Bring a version; return what each engine says of how it has applied that."""
        return list(map(str, self._ask("update", version)))

    def fail_half_way(self, version: str) -> None:
        """Begin to bring a version, and give up when half of it is sent."""
        assert self._ask("fail", version) == "tainted"

    def refusal(self, version: str) -> str:
        """Bring a version that is refused; return what is said."""
        return str(self._ask("refuse", version))

    def _ask(self, *order: str) -> Any:
        self._pipe.send(order)
        assert self._pipe.poll(ANSWER_SECONDS), "the source does not answer"
        answer = self._pipe.recv()
        assert not isinstance(answer, Exception), answer
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()


def _serve(
    settings: Mapping[str, Any],
    directories: Mapping[str, Path],
    sinks: Sequence[str],
    targets: Mapping[str, Path],
    pipe: Connection,
) -> None:
    orders = {"update": _update, "fail": _fail_half_way, "refuse": _refuse}
    with ParameterServer(Config.load(**settings)) as server:
        for version, directory in directories.items():
            if version in targets:
                stored = server.register(f"{version} before", directory=directory)
                server.lend(version, quantized(stored, read_target(targets[version])))
            else:
                server.register(version, directory=directory)
        while True:
            try:
                order, version = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send(orders[order](server, version, sinks))
            except Exception as error:
                pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _update(server: ParameterServer, version: str, sinks: Sequence[str]) -> list[str]:
    report = server.update(version, sinks)
    assert report is not None
    return list(report.apply_summary.values())


def _refuse(server: ParameterServer, version: str, sinks: Sequence[str]) -> str:
    try:
        server.update(version, sinks)
    except UpdateAbortedError as error:
        return str(error)
    return "nothing was refused"


def _fail_half_way(server: ParameterServer, version: str, sinks: Sequence[str]) -> str:
    def give_up(done: int, total: int) -> None:
        if done > total // 2:
            raise Giving

    try:
        server.update(version, sinks, give_up)
    except Giving as interrupt:
        return "tainted" if isinstance(interrupt.__cause__, TaintedError) else str(interrupt.__cause__)
    return "nothing failed"
