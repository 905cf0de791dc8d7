"""A process with a sink ends, or begins to: whoever updates it hears so at once, and nothing is half done."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from ckpt_transport import Config, ParameterServer, ask_version
from ckpt_transport.errors import CkptTransportError, UpdateAbortedError
from tests.patience import DEADLINE, PATIENT

INTERRUPTED = """
import os, signal, threading, time
import torch
from ckpt_transport_torch import attach

model = torch.nn.Linear(64, 64)


def loader(tensors):
    if threading.main_thread().is_alive():
        os.kill(os.getpid(), signal.SIGINT)
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    for name, tensor in tensors:
        model.state_dict()[name].copy_(tensor)


attached = attach(model, version="v1", loader=loader)
print(attached.address, flush=True)
threading.Event().wait()
"""
"""Ctrl-C comes when a loader has begun, and nobody closes what is attached."""

WITHOUT_MAIN = """
import sys, threading
import torch
from ckpt_transport_torch import attach

model = torch.nn.Linear(64, 64)
attached = attach(model, version="v1")


def serve():
    threading.main_thread().join()
    print(attached.address, flush=True)
    sys.stdin.read()


threading.Thread(target=serve).start()
"""
"""The main thread has ended, and another one serves until nobody writes to it any more."""


@contextmanager
def program(text: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address that it has printed."""
    command, pipe = [sys.executable, "-c", text], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_given_an_engine_that_is_interrupted_in_an_update_and_not_closed_then_its_source_hears_it() -> None:
    weights = torch.nn.Linear(64, 64).state_dict()
    with program(INTERRUPTED) as (engine, address), ParameterServer(Config.load(**PATIENT)) as server:
        said = ""
        try:
            server.publish("v2", weights, [address])
        except CkptTransportError as error:
            said = str(error)
        assert "no sign of life" not in said
        assert engine.wait(DEADLINE) == -signal.SIGINT
        with pytest.raises(CkptTransportError, match="no answer"):
            ask_version(address, timeout=0.5)


def test_given_a_main_thread_that_has_ended_then_an_update_is_refused_before_anything_is_written() -> None:
    weights = torch.nn.Linear(64, 64).state_dict()
    with program(WITHOUT_MAIN) as (engine, address), ParameterServer(Config.load(**PATIENT)) as server:
        with pytest.raises(UpdateAbortedError, match=rf"the main thread of process {engine.pid} has ended.*keep it"):
            server.publish("v2", weights, [address])
        assert ask_version(address, timeout=DEADLINE).version == "v1"
        assert engine.stdin is not None
        engine.stdin.close()
        assert engine.wait(DEADLINE) == 0
