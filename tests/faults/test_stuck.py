"""A library, a loader or an engine does not return from a call: the engine serves what it may, and it is said."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_transport import Config, LoadedBucket, ParameterServer, Sink, ask_version
from ckpt_transport.errors import TaintedError, UpdateAbortedError
from ckpt_transport.memory import Fence
from ckpt_transport.service.stuck import MayBeStuck
from ckpt_transport_torch import Attachment, TorchEngine, attach
from tests import stuck
from tests.fleet import SinkProcess, SinkSpec, fleet, model, weights
from tests.injection import Fault
from tests.patience import DEADLINE, PATIENT, with_enough_seconds
from tests.site import READ

SHAPE: dict[str, Any] = {"layers": 8, "width": 128}
SMALL: dict[str, Any] = {"bucket_bytes": "66KiB", "ring_depth": 2}

pytestmark = pytest.mark.usefixtures("dead_are_swept")


def server(**settings: Any) -> ParameterServer:
    return ParameterServer(Config.load(transport=READ, **{**PATIENT, **SMALL, **settings}))


def refuses_updates(sink: SinkProcess) -> None:
    """Whoever asks or invites is told at which call it hangs; an invitation is repeated until ``join_timeout``."""
    assert "in inside_the_library (thread ckpt-transport-pump)" in ask_version(sink.address, timeout=DEADLINE).stuck

    def is_told(seconds: float) -> bool:
        with server(join_timeout=seconds) as source:
            source.register("v3", tensors=weights(3, **SHAPE))
            with pytest.raises(UpdateAbortedError) as caught:
                source.update("v3", [sink.address])
        said = str(caught.value)
        return "takes no update until a call returns" in said and "inside_the_library" in said

    with_enough_seconds(is_told)


def recovers(sink: SinkProcess, until: Path) -> None:
    """When the call returns, the next update is taken as any other."""
    until.touch()
    deadline = time.monotonic() + DEADLINE
    while ask_version(sink.address, timeout=DEADLINE).stuck:
        assert time.monotonic() < deadline, "it does not come back"
    with server() as source:
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
    spec = SinkSpec(model=SHAPE, site=site, prepare=partial(stuck.read_hangs, read, until))
    with fleet(spec, SinkSpec(model=SHAPE, site=site)) as (sink, other):
        with server() as source:
            source.register("v2", tensors=weights(2, **SHAPE))
            with pytest.raises(KeyboardInterrupt) as caught, stuck.interrupted_when(stuck.hanging(until).exists):
                source.update("v2", [sink.address, other.address])
        error = caught.value.__cause__
        state = sink.state()
        if read == 1:
            assert isinstance(error, TaintedError | UpdateAbortedError), "the other may have begun"
            assert (state.version, state.tainted, state.served) == ("v1", "", "")
            assert state.holds(weights(1, **SHAPE))
        else:
            assert isinstance(error, TaintedError)
            assert any(sink.address in label for label in error.sinks)
            assert (state.version, state.served) == ("v1", "TaintedError")
            assert "inside_the_library" in ask_version(sink.address, timeout=DEADLINE).tainted
        assert "no answer from" not in str(error)
        refuses_updates(sink)
        recovers(sink, until)


def test_given_a_library_that_hangs_when_it_is_aborted_then_the_engine_is_told_and_the_source_hears_it(
    site: str, tmp_path: Path
) -> None:
    """Given two sinks, when one fails half-way and the other hangs as it lets go, then both are named as tainted."""
    until = tmp_path / "returns"
    spec = SinkSpec(model=SHAPE, site=site, prepare=partial(stuck.abort_hangs, until))
    failing = SinkSpec(model=SHAPE, site=site, fault=Fault("load", 7, act="raise"))
    with fleet(spec, failing) as (sink, other):
        with server() as source:
            source.register("v2", tensors=weights(2, **SHAPE))
            with pytest.raises(TaintedError, match="injected into load") as caught:
                source.update("v2", [sink.address, other.address])
        assert "no answer from" not in str(caught.value)
        assert len(caught.value.sinks) == 2
        assert sink.state().served == "TaintedError"
        assert "inside_the_library" in ask_version(sink.address, timeout=DEADLINE).stuck
        recovers(sink, until)


class Hanging(TorchEngine):
    """Its fourth bucket hangs."""

    def __init__(self, module: torch.nn.Module, returns: threading.Event) -> None:
        super().__init__(module)
        self._returns, self._loads = returns, 0
        self.hangs = threading.Event()

    def load(self, pieces: LoadedBucket) -> Fence | None:
        self._loads += 1
        if self._loads == 4:
            self.hangs.set()
            self._returns.wait(4 * DEADLINE)
        return super().load(pieces)


def test_given_a_stuck_sink_when_it_is_closed_then_that_ends_and_its_address_is_free(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an engine that never returns, when the sink is closed, then that ends, and says what is stuck."""
    monkeypatch.setattr(MayBeStuck, "_watch_over", stuck.watch_impatiently)
    module, returns = model(1, **SHAPE), threading.Event()
    engine, config = Hanging(module, returns), Config.load(**{**PATIENT, **SMALL})
    sink = Sink(engine, "", "v1", config)
    served = Attachment(module, engine, sink)
    sink.start()
    try:
        with ParameterServer(Config.load(transport="shm", **{**PATIENT, **SMALL})) as source:
            source.register("v2", tensors=weights(2, **SHAPE))
            with pytest.raises(KeyboardInterrupt) as caught, stuck.interrupted_when(engine.hangs.is_set):
                source.update("v2", [served.address])
        assert isinstance(caught.value.__cause__, TaintedError)
        with pytest.raises(TaintedError):
            module(torch.zeros(1, 128))
        assert "in load (thread ckpt-transport-sink)" in ask_version(served.address, config, timeout=DEADLINE).stuck
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
        self.time_is_up: Callable[[], None] = returns.set

    def finish(self) -> None:
        super().finish()
        self._commits = True

    def certify(self) -> None:
        super().certify()
        if self._commits and not self._returns.is_set():
            self.time_is_up()
            self._returns.wait(DEADLINE)


def test_given_a_commit_that_does_not_return_when_it_was_given_up_and_returns_then_the_sink_stays_tainted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given a source that was told that a sink must not serve, then the sink does not serve after all."""
    monkeypatch.setattr(MayBeStuck, "_watch_over", stuck.watch_impatiently)
    module, returns = model(1, **SHAPE), threading.Event()
    engine, config = LateToCommit(module, returns), Config.load(**PATIENT)
    sink = Sink(engine, "", "v1", config)

    def the_deadline_passes() -> None:
        assert sink._follower is not None
        sink._follower._steps.deadline = time.monotonic()

    engine.time_is_up = the_deadline_passes
    with ParameterServer(Config.load(transport="shm", **PATIENT)) as source:
        served = Attachment(module, engine, sink)
        sink.start()
        source.register("v2", tensors=weights(2, **SHAPE))
        with pytest.raises(TaintedError) as caught:
            source.update("v2", [served.address])
        assert any(served.address in label for label in caught.value.sinks)
        assert "in certify (thread ckpt-transport-sink)" in ask_version(served.address, config, timeout=DEADLINE).stuck
        returns.set()
        deadline = time.monotonic() + DEADLINE
        while ask_version(served.address, config, timeout=DEADLINE).stuck:
            assert time.monotonic() < deadline
        assert (sink.version, bool(sink.tainted)) == ("v1", True)
        with pytest.raises(TaintedError):
            module(torch.zeros(1, 128))
        source.update("v2", [served.address])
        assert (sink.version, sink.tainted) == ("v2", "")
        module(torch.zeros(1, 128))
        served.close()
