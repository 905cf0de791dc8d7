"""What an update refuses, and that refusing changes nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import zmq

from ckpt_transport import Config, ParameterServer, ask_version
from ckpt_transport.errors import (
    BudgetError,
    CkptTransportError,
    ConfigError,
    JoinError,
    PlanMismatchError,
    SharedMemoryError,
    StoreError,
    TransportNotFoundError,
    UpdateAbortedError,
    UpdateError,
)
from ckpt_transport.memory.segment import SHM
from ckpt_transport.update import messages as m
from ckpt_transport.update.membership import Membership
from tests.fleet import SinkProcess, SinkSpec, by_name, fleet, weights
from tests.injection import Fault
from tests.patience import DEADLINE, PATIENT, with_enough_seconds
from tests.support.commands import run


@pytest.fixture
def sink() -> Iterator[SinkProcess]:
    with fleet(SinkSpec()) as (running,):
        yield running
        state = running.state()
        assert (state.version, state.tainted, state.served) == ("v1", "", "")
        assert state.holds(weights(1))


def server(**settings: object) -> ParameterServer:
    return ParameterServer(Config.load(**{**PATIENT, **settings}))


def refused(sink: SinkProcess, tensors: dict[str, torch.Tensor], cause: type[Exception], match: str) -> None:
    with server() as source:
        source.register("v2", tensors=tensors)
        with pytest.raises(UpdateAbortedError, match=match) as caught:
            source.update("v2", [sink.address])
        assert isinstance(caught.value.__cause__, cause)


def test_given_a_tensor_that_is_missing_then_it_is_named(sink: SinkProcess) -> None:
    tensors = weights(2)
    del tensors["3.bias"]
    refused(sink, tensors, PlanMismatchError, r"lacks tensor 3\.bias")


def test_given_a_tensor_too_many_then_it_is_named(sink: SinkProcess) -> None:
    refused(sink, {**weights(2), "surplus": torch.ones(3)}, PlanMismatchError, "surplus")


def test_given_a_tensor_of_another_shape_then_both_shapes_are_named(sink: SinkProcess) -> None:
    refused(sink, {**weights(2), "0.bias": torch.ones(3)}, PlanMismatchError, r"0\.bias is F32 \[3\].*F32 \[256\]")


def test_given_a_tensor_of_another_dtype_then_it_is_named(sink: SinkProcess) -> None:
    tensors = weights(2)
    tensors["0.bias"] = tensors["0.bias"].half()
    refused(sink, tensors, PlanMismatchError, r"0\.bias is F16")


def test_given_a_transport_that_nobody_knows_then_those_there_are_are_listed(sink: SinkProcess) -> None:
    with server(transport="glue") as source:
        source.register("v2", tensors=weights(2))
        with pytest.raises(TransportNotFoundError, match=r"glue.*cuda_ipc, gloo, .*nccl, .*shm"):
            source.update("v2", [sink.address])


def test_given_a_budget_smaller_than_a_whole_tensor_then_the_tensor_is_named() -> None:
    poor = SinkSpec(loader=by_name, settings={"memory_budget": "100KiB"})
    with fleet(poor) as (running,), server(transport="gloo") as source:
        source.register("v2", tensors=weights(2))
        with pytest.raises(UpdateAbortedError, match=r"\.weight \(F32 \[256, 256\]\).*memory_budget") as caught:
            source.update("v2", [running.address])
        assert isinstance(caught.value.__cause__, BudgetError)
        assert running.state().holds(weights(1))


def test_given_shm_and_a_sink_on_another_host_then_it_is_refused() -> None:
    with fleet(SinkSpec(settings={"host": "far"})) as (running,), server(transport="shm") as source:
        source.register("v2", tensors=weights(2))
        with pytest.raises(UpdateAbortedError, match="stays within a host") as caught:
            source.update("v2", [running.address])
        assert isinstance(caught.value.__cause__, ConfigError)


def test_given_a_sink_that_is_not_there_then_it_is_named_in_time(sink: SinkProcess, tmp_path: Path) -> None:
    nobody = f"ipc://{tmp_path}/nobody"
    with server(join_timeout=0.5) as source:
        source.register("v2", tensors=weights(2))
        with pytest.raises(UpdateAbortedError, match=nobody) as caught:
            source.update("v2", [sink.address, nobody])
        assert isinstance(caught.value.__cause__, JoinError)
    with pytest.raises(JoinError, match=nobody):
        ask_version(nobody, timeout=0.3)


def test_given_a_sink_that_is_named_twice_then_it_is_refused(sink: SinkProcess) -> None:
    with server() as source:
        source.register("v2", tensors=weights(2))
        with pytest.raises(ConfigError, match="twice"):
            source.update("v2", [sink.address, sink.address])


def test_given_a_peer_with_another_plan_then_it_is_refused_before_the_first_byte() -> None:
    """Given a sink that holds another plan, then the update ends there and both digests are named."""
    with fleet(SinkSpec(fault=Fault("propose", act="lie"))) as (running,), server() as source:
        source.register("v2", tensors=weights(2))
        with pytest.raises(
            UpdateAbortedError, match=r"sink 0.* holds plan 0000000000000000 and rank 0 holds"
        ) as caught:
            source.update("v2", [running.address])
        assert isinstance(caught.value.__cause__, PlanMismatchError)
        assert running.state().holds(weights(1))


def test_given_a_loader_that_raises_then_its_sink_is_tainted_and_the_error_reaches_the_source() -> None:
    with fleet(SinkSpec(loader=by_name, fault=Fault("load", act="raise"))) as (running,), server() as source:
        source.register("v2", tensors=weights(2))
        with pytest.raises(UpdateError, match="injected into load") as caught:
            source.update("v2", [running.address])
        assert "sink 0" in str(caught.value)
        source.update("v2", [running.address])
        assert running.state().holds(weights(2))


def test_given_a_loader_that_hangs_then_the_update_ends_at_its_deadline() -> None:
    """Given a loader that never returns, then the source gives up at the deadline and names the sink."""
    with fleet(SinkSpec(fault=Fault("load", 2, act="hang"))) as (running,):

        def names_the_sink(seconds: float) -> bool:
            patience = {"update_timeout": seconds, "join_timeout": seconds, "heartbeat_timeout": seconds}
            with server(**patience, bucket_bytes="64KiB") as source:
                source.register("v2", tensors=weights(2))
                with pytest.raises(UpdateError) as caught:
                    source.update("v2", [running.address])
                return "sink 0" in str(caught.value)

        with_enough_seconds(names_the_sink)
        running.process.kill()
        running.process.join()


@pytest.mark.parametrize(
    ("pool", "error", "said"),
    [
        ("auto", SharedMemoryError, r"/dev/shm has .* bytes free.*; nor has the host's memory, with .* bytes free"),
        ("shared", SharedMemoryError, r"/dev/shm has .* bytes free"),
        ("private", StoreError, r"the host has .* bytes free"),
    ],
)
def test_given_a_version_larger_than_all_memory_then_it_is_refused_before_anything_is_copied(
    pool: str, error: type[Exception], said: str
) -> None:
    rows = max(shutil.disk_usage(SHM).total, psutil.virtual_memory().total) // 2**20 + 1000
    huge = torch.ones(1, dtype=torch.uint8).expand(rows, 2**20)
    with server(pool=pool) as source, pytest.raises(error, match=said):
        source.register("v2", tensors={"huge": huge})


LIMITED = """
import resource, sys, torch
from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import StoreError

taken = resource.getpagesize() * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (taken + (300 << 20),) * 2)
with ParameterServer(Config.load(pool=sys.argv[1]), rank=0, world_size=1) as source:
    try:
        source.register("v2", tensors={"a": torch.zeros(1).expand(1 << 28)})
    except StoreError as error:
        print(error)
"""
"""A process that may have less memory than there is."""


@pytest.mark.parametrize("pool", ["auto", "shared", "private"])
def test_given_a_process_whose_memory_is_limited_then_what_is_too_large_is_refused_with_the_cure(pool: str) -> None:
    said = subprocess.run([sys.executable, "-c", LIMITED, pool], capture_output=True, text=True, timeout=DEADLINE)
    assert (said.returncode, said.stdout.count("its limits, as 'ulimit -v' says")) == (0, 1), said.stderr


@pytest.mark.parametrize("junk", [[b"hello"], [b"", b"", b""], [b"ckpt-transport/1", b"ipc:///x", b"\xff\x00junk"]])
def test_given_what_is_not_a_message_of_ours_then_it_is_refused_and_disturbs_nobody(
    sink: SinkProcess, junk: list[bytes]
) -> None:
    """Given a program that speaks something else, then it is told so, and the sink goes on as before."""
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    try:
        stranger.connect(sink.address)
        stranger.send_multipart(junk)
        assert stranger.poll(int(DEADLINE * 1000)), "a stranger gets an answer"
        assert b"Refused" in stranger.recv_multipart()[-1]
    finally:
        context.destroy(0)
    assert ask_version(sink.address, timeout=DEADLINE).version == "v1"


def test_given_an_update_when_it_is_interrupted_then_that_is_still_an_interrupt(sink: SinkProcess) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with server() as source:
        source.register("v2", tensors=weights(2))
        with pytest.raises(KeyboardInterrupt):
            source.update("v2", [sink.address], progress=interrupt)
        source.register("v1", tensors=weights(1))
        source.update("v1", [sink.address])


def test_given_an_interrupt_when_one_of_two_sinks_was_told_to_commit_then_both_serve_the_new_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send, told = Membership.send, []

    def interrupted(self: Membership, rank: int, message: Any) -> None:
        send(self, rank, message)
        if isinstance(message, m.Commit):
            told.append(rank)
            if len(told) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(Membership, "send", interrupted)
    with fleet(SinkSpec(), SinkSpec()) as sinks, server() as source:
        source.register("v2", tensors=weights(2))
        with pytest.raises(KeyboardInterrupt) as caught:
            source.update("v2", [sink.address for sink in sinks])
        assert caught.value.__cause__ is None
        assert [(sink.state().version, sink.state().served) for sink in sinks] == [("v2", "")] * 2


@pytest.mark.parametrize("arguments", [["update", "--checkpoint", "CHECKPOINT", "--version", "v2"], ["plan"]])
def test_given_a_command_line_that_lacks_something_then_what_is_missing_is_said(
    tmp_path: Path, arguments: list[str]
) -> None:
    """Given wrong use, then the exit code is not 0 and the message names what is missing."""
    arguments = [str(tmp_path) if argument == "CHECKPOINT" else argument for argument in arguments]
    done = run(*arguments)
    assert done.returncode in (1, 2)
    assert any(missing in done.stderr for missing in ("--sink", "--checkpoint"))


def test_given_errors_then_they_are_one_tree() -> None:
    for error in (BudgetError, JoinError, UpdateAbortedError, SharedMemoryError):
        assert issubclass(error, CkptTransportError)
