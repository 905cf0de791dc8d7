"""A library, a loader or an engine does not return from a call: the engine serves what it may, and it is said."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_transport import Config, LoadedBucket, ParameterServer, Sink, ask_version
from ckpt_transport.errors import TaintedError, UpdateAbortedError
from ckpt_transport.memory import Fence
from ckpt_transport_torch import Attachment, TorchEngine, attach
from tests import stuck
from tests.fleet import SinkProcess, SinkSpec, fleet, model, weights
from tests.injection import Fault
from tests.patience import DEADLINE, SWIFT
from tests.site import READ

SHAPE: dict[str, Any] = {"layers": 8, "width": 128}
HASTY: dict[str, Any] = {**SWIFT, "update_timeout": 6.0, "join_timeout": 4.0, "heartbeat_timeout": 3.0}
SMALL: dict[str, Any] = {"bucket_bytes": "66KiB", "ring_depth": 2}

pytestmark = pytest.mark.usefixtures("dead_are_swept")


def server(**settings: Any) -> ParameterServer:
    return ParameterServer(Config.load(transport=READ, **{**HASTY, **SMALL, **settings}))


def refuses_updates(sink: SinkProcess) -> None:
    """Whoever asks or invites is told at which call it hangs."""
    assert "in inside_the_library (thread ckpt-transport-pump)" in ask_version(sink.address).stuck
    with server(join_timeout=3.0) as source:
        source.register("v3", tensors=weights(3, **SHAPE))
        with pytest.raises(UpdateAbortedError, match=r"takes no update until a call returns.*inside_the_library"):
            source.update("v3", [sink.address])


def recovers(sink: SinkProcess, until: Path) -> None:
    """When the call returns, the next update is taken as any other."""
    until.touch()
    deadline = time.monotonic() + DEADLINE
    while ask_version(sink.address).stuck:
        assert time.monotonic() < deadline
    with server(update_timeout=DEADLINE) as source:
        source.register("v4", tensors=weights(4, **SHAPE))
        source.update("v4", [sink.address])
    state = sink.state()
    assert (state.version, state.tainted, state.served) == ("v4", "", "")
    assert state.holds(weights(4, **SHAPE))


@pytest.mark.parametrize("read", [1, 5], ids=["before-any-byte", "half-way"])
def test_given_a_library_that_hangs_in_a_read_when_the_update_is_aborted_then_the_engine_serves_what_it_may(
    site: str, tmp_path: Path, read: int
) -> None:
    """Given a sink whose transport never returns, then it serves its old version, or is tainted, and says why."""
    until = tmp_path / "returns"
    spec = SinkSpec(model=SHAPE, site=site, settings=HASTY, prepare=partial(stuck.read_hangs, read, until))
    with fleet(spec, SinkSpec(model=SHAPE, site=site, settings=HASTY)) as (sink, other):
        with server() as source:
            source.register("v2", tensors=weights(2, **SHAPE))
            with pytest.raises(TaintedError if read > 1 else (TaintedError, UpdateAbortedError)) as caught:
                source.update("v2", [sink.address, other.address])
        state = sink.state()
        if read == 1:
            assert (state.version, state.tainted, state.served) == ("v1", "", "")
            assert state.holds(weights(1, **SHAPE))
        else:
            assert isinstance(caught.value, TaintedError)
            assert any(sink.address in label for label in caught.value.sinks)
            assert (state.version, state.served) == ("v1", "TaintedError")
            assert "inside_the_library" in ask_version(sink.address).tainted
        assert "no answer from" not in str(caught.value)
        refuses_updates(sink)
        recovers(sink, until)


def test_given_a_library_that_hangs_when_it_is_aborted_then_the_engine_is_told_and_the_source_hears_it(
    site: str, tmp_path: Path
) -> None:
    """Given two sinks, when one fails half-way and the other hangs as it lets go, then both are named as tainted."""
    until = tmp_path / "returns"
    spec = SinkSpec(model=SHAPE, site=site, settings=HASTY, prepare=partial(stuck.abort_hangs, until))
    failing = SinkSpec(model=SHAPE, site=site, settings=HASTY, fault=Fault("load", 7, act="raise"))
    with fleet(spec, failing) as (sink, other):
        with server(update_timeout=DEADLINE) as source:
            source.register("v2", tensors=weights(2, **SHAPE))
            with pytest.raises(TaintedError, match="injected into load") as caught:
                source.update("v2", [sink.address, other.address])
        assert "no answer from" not in str(caught.value)
        assert len(caught.value.sinks) == 2
        assert sink.state().served == "TaintedError"
        assert "inside_the_library" in ask_version(sink.address).stuck
        recovers(sink, until)


class Hanging(TorchEngine):
    """Its fourth bucket hangs."""

    def __init__(self, module: torch.nn.Module, returns: threading.Event) -> None:
        super().__init__(module)
        self._returns, self._loads = returns, 0

    def load(self, pieces: LoadedBucket) -> Fence | None:
        self._loads += 1
        if self._loads == 4:
            self._returns.wait(4 * DEADLINE)
        return super().load(pieces)


def test_given_a_stuck_sink_when_it_is_closed_then_that_ends_and_its_address_is_free(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Given an engine that never returns, when the sink is closed, then that ends, and says what is stuck."""
    module, returns = model(1, **SHAPE), threading.Event()
    engine, config = Hanging(module, returns), Config.load(**{**HASTY, **SMALL})
    sink = Sink(engine, "", "v1", config)
    served = Attachment(module, engine, sink)
    sink.start()
    try:
        with ParameterServer(Config.load(transport="shm", **{**HASTY, **SMALL})) as source:
            source.register("v2", tensors=weights(2, **SHAPE))
            with pytest.raises(TaintedError):
                source.update("v2", [served.address])
        with pytest.raises(TaintedError):
            module(torch.zeros(1, 128))
        assert "in load (thread ckpt-transport-sink)" in ask_version(served.address, config).stuck
        served.close()
        assert sink._thread is not None
        assert sink._thread.is_alive(), "close has not waited for the call"
        assert "was closed and does not end, because a call has not returned" in caplog.text
        attach(model(1, **SHAPE), served.address, config=config).close()
    finally:
        returns.set()
        thread = sink._thread
        assert thread is not None
        thread.join(DEADLINE)
        assert not thread.is_alive()


class LateToCommit(TorchEngine):
    """Looks at what was loaded for as long as it is told to."""

    def __init__(self, module: torch.nn.Module, returns: threading.Event) -> None:
        super().__init__(module)
        self._returns, self._commits = returns, False

    def finish(self) -> None:
        super().finish()
        self._commits = True

    def certify(self) -> None:
        super().certify()
        if self._commits:
            self._returns.wait(DEADLINE)


def test_given_a_commit_that_does_not_return_when_it_was_given_up_and_returns_then_the_sink_stays_tainted() -> None:
    """Given a source that was told that a sink must not serve, then the sink does not serve after all."""
    module, returns = model(1, **SHAPE), threading.Event()
    engine, config = LateToCommit(module, returns), Config.load(**HASTY)
    sink = Sink(engine, "", "v1", config)
    with ParameterServer(Config.load(transport="shm", **{**HASTY, "join_timeout": 10.0})) as source:
        served = Attachment(module, engine, sink)
        sink.start()
        source.register("v2", tensors=weights(2, **SHAPE))
        with pytest.raises(TaintedError) as caught:
            source.update("v2", [served.address])
        assert any(served.address in label for label in caught.value.sinks)
        returns.set()
        deadline = time.monotonic() + DEADLINE
        while ask_version(served.address, config).stuck:
            assert time.monotonic() < deadline
        assert (sink.version, bool(sink.tainted)) == ("v1", True)
        with pytest.raises(TaintedError):
            module(torch.zeros(1, 128))
        source.update("v2", [served.address])
        assert (sink.version, sink.tainted) == ("v2", "")
        module(torch.zeros(1, 128))
        served.close()
