"""A source in a process of its own, for engines that live in the process of a test."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import TaintedError

ANSWER_SECONDS = 300
context = multiprocessing.get_context("spawn")


class Giving(Exception):
    """Raised in the middle of an update."""


class Source:
    """Brings versions to one sink, from another process.

    Args:
        settings: of its Config.
        directories: of the versions, by name.
        sink: the address of the engine's.
    """

    def __init__(self, settings: Mapping[str, Any], directories: Mapping[str, Path], sink: str) -> None:
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(settings, directories, sink, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def update(self, version: str) -> float:
        """Bring a version; return the seconds that it took."""
        return float(self._ask("update", version))

    def fail_half_way(self, version: str) -> None:
        """Begin to bring a version, and give up when half of it is sent."""
        assert self._ask("fail", version) == "tainted"

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


def _serve(settings: Mapping[str, Any], directories: Mapping[str, Path], sink: str, pipe: Connection) -> None:
    with ParameterServer(Config.load(**settings)) as server:
        for version, directory in directories.items():
            server.register(version, directory=directory)
        while True:
            try:
                order, version = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send(_fail_half_way(server, version, sink) if order == "fail" else _update(server, version, sink))
            except Exception as error:
                pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _update(server: ParameterServer, version: str, sink: str) -> float:
    report = server.update(version, [sink])
    assert report is not None
    return report.seconds


def _fail_half_way(server: ParameterServer, version: str, sink: str) -> str:
    def give_up(done: int, total: int) -> None:
        if done > total // 2:
            raise Giving

    try:
        server.update(version, [sink], give_up)
    except TaintedError:
        return "tainted"
    return "nothing failed"
