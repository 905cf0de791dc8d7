"""Processes that have vLLM imported when they begin, because they are forked from one that has.

A server of vLLM is three processes, and to import vLLM takes each of them twelve seconds of a core. What a forked
process runs is the same otherwise: it has a session, an environment and a log of its own, and what it spawns is forked
too, from a child that it keeps for that and that has done nothing yet.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import multiprocessing
import os
import re
import runpy
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import context, forkserver, resource_tracker, spawn
from pathlib import Path
from typing import Any

import torch

PRELOADED = "tests.vllm.preloaded"
CORES = ("GOMP_CPU_AFFINITY", "OMP_PLACES")
"""Where vLLM says on which cores a worker computes, for OpenMP, which reads it only when it is loaded."""


class Forked:
    """``python -m MODULE ARGUMENTS``, with the methods of ``subprocess.Popen``.

    Args:
        environment: of the process.
        output: the file to which it and its children write.
    """

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], output: Path) -> None:
        output.touch()
        what = module, [*arguments], {**environment}, str(output)
        self._process = multiprocessing.get_context("forkserver").Process(target=_become, args=what)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """
        Raises:
            TimeoutExpired: it has not ended by then.
        """
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(f"the forked process {self.pid}", timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def begin() -> None:
    """Start the process from which others are forked, unless it runs."""
    forkserver.set_forkserver_preload([PRELOADED])
    forkserver.ensure_running()


def output_of(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What ``python -m MODULE ARGUMENTS`` prints. It is forked where :func:`begin` was called, and started elsewhere.

    Raises:
        CalledProcessError: it failed.
    """
    environment = os.environ if environment is None else environment
    server: Any = forkserver._forkserver
    if server._forkserver_address is None:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**environment}).stdout
    with tempfile.NamedTemporaryFile() as output:
        code = Forked(module, arguments, environment, Path(output.name)).wait()
        said = Path(output.name).read_text(encoding="utf-8", errors="replace")
    if code:
        print(said, file=sys.stderr)
        raise subprocess.CalledProcessError(code, [module, *arguments], said)
    return said


def _become(module: str, arguments: list[str], environment: dict[str, str], output: str) -> None:
    """Run a module as the main program of this process, which has just been forked."""
    assert PRELOADED in sys.modules, f"{PRELOADED} was not imported where processes are forked"
    os.setsid()
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    _take(environment)
    tracker: Any = resource_tracker._resource_tracker
    tracker._fd = tracker._pid = None  # it has one of its own, as every program
    sys.argv = [module, *arguments]
    _fork_what_is_spawned()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


def _take(environment: Mapping[str, str]) -> None:
    """Have this process be as one that was started with these variables."""
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path and path not in sys.path]
    importlib.invalidate_caches()
    sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")
    cores = {int(core) for name in CORES for core in re.findall(r"\d+", environment.get(name, ""))}
    if cores:
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(max(len(cores), 1))


_describe_as_ever, _prepare_as_ever = spawn.get_preparation_data, spawn.prepare


def _describe(name: str) -> dict[str, Any]:
    return {**_describe_as_ever(name), "environment": dict(os.environ)}


def _prepare(described: dict[str, Any]) -> None:
    _take(described.pop("environment"))
    _prepare_as_ever(described)


def _fork_what_is_spawned() -> None:
    """Have :mod:`multiprocessing` fork, from a child that is made now, where it would start a new Python.

    So processes are children of this one, as they would be, and have the environment that this one has by then.
    """
    internals: Any = spawn
    internals.get_preparation_data, internals.prepare = _describe, _prepare
    contexts: Any = context
    contexts._concrete_contexts["spawn"] = multiprocessing.get_context("forkserver")
    server: Any = forkserver._forkserver
    type(server).ensure_running = lambda self: resource_tracker.ensure_running()

    address = f"\0forked-{os.getpid()}-{secrets.token_hex(8)}"
    alive, living = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        if os.fork() == 0:
            try:
                os.close(living)
                forkserver.main(listener.detach(), alive, [])
            finally:
                os._exit(0)
    os.close(alive)
    server._forkserver_address, server._forkserver_alive_fd = address, living
