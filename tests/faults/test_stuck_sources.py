"""A transport's library does not return from a call of a source: sinks are free when the update's time is up."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import UpdateAbortedError
from ckpt_transport.service import source_rank
from ckpt_transport.service.source_watch import SourceWatch
from tests import stuck
from tests.conformance.transports import ReadTransport
from tests.conformance.transports.message import SocketEndpoint
from tests.fleet import SinkProcess, SinkSpec, SourceProcess, fleet, weights
from tests.patience import DEADLINE, PATIENT, with_enough_seconds
from tests.site import READ, SOCKETS, use

SHAPE: dict[str, Any] = {"layers": 8, "width": 128}

pytestmark = pytest.mark.usefixtures("dead_are_swept")


def hangs(call: Callable[..., Any], until: Path) -> Callable[..., Any]:
    """The call, which hangs inside the library until a file is there."""

    def hanging(self: object, *arguments: Any) -> Any:
        stuck.inside_the_library(until)
        return call(self, *arguments)

    return hanging


def impatient(label: str, patience: float) -> SourceWatch:
    return SourceWatch(label, stuck.SOON)


def takes_another_update(sink: SinkProcess) -> None:
    """It is not occupied by an update whose source is stuck."""
    with ParameterServer(Config.load(**{**PATIENT, "transport": "shm"})) as other:
        other.register("v3", tensors=weights(3, **SHAPE))
        other.update("v3", [sink.address])
    assert sink.state().holds(weights(3, **SHAPE))


@pytest.mark.parametrize(
    ("transport", "owner", "method", "call"),
    [
        (READ, ReadTransport, "open", f"of transport '{READ}'"),
        (SOCKETS, SocketEndpoint, "_send_to", f"of an endpoint of transport '{SOCKETS}'"),
    ],
    ids=["before-passes-are-held", "while-passes-are-held"],
)
def test_given_a_transport_that_hangs_at_the_source_when_time_is_up_then_sinks_are_free_and_the_log_names_the_call(
    site: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    transport: str,
    owner: type,
    method: str,
    call: str,
) -> None:
    use(site)
    monkeypatch.setattr(source_rank, "SourceWatch", impatient)
    calls = getattr(owner, method)
    never = {"update_timeout": 10 * DEADLINE}

    def is_free_in_time(seconds: float) -> bool:
        until = tmp_path / f"{seconds:g}"
        monkeypatch.setattr(owner, method, hangs(calls, until))
        settings = {**PATIENT, "update_timeout": seconds, "transport": transport, "commit": "in_place"}
        with (
            fleet(SinkSpec(model=SHAPE, site=site, settings=never)) as (sink,),
            ParameterServer(Config.load(**settings)) as source,
            ThreadPoolExecutor(1) as threads,
        ):
            source.register("v2", tensors=weights(2, **SHAPE))
            update = threads.submit(source.update, "v2", [sink.address])
            try:
                while not update.done() and "is stuck" not in caplog.text:
                    time.sleep(stuck.TICK_SECONDS)
                if not stuck.hanging(until).exists():
                    return False
                assert not update.done(), "nobody can end the call"
                state = sink.state()
                assert (state.version, state.tainted, state.served) == ("v1", "", "")
                takes_another_update(sink)
            finally:
                until.touch()
            error = update.exception(DEADLINE)
            assert isinstance(error, UpdateAbortedError)
            assert "is stuck" in str(error)
            try:
                source.update("v2", [sink.address])
            except UpdateAbortedError:
                return False
            assert sink.state().holds(weights(2, **SHAPE))
        return True

    with_enough_seconds(is_free_in_time)
    said = next(record.getMessage() for record in caplog.records if "is stuck" in record.getMessage())
    assert re.search(rf"source 0 is stuck \(a call has not returned since \d\d:\d\d:\d\d: .*{re.escape(call)}", said)
    assert "in inside_the_library" in said
    assert "sinks were told that it is over" in said
    assert "Ctrl-C" in said


def test_given_a_transport_that_hangs_at_a_rank_above_0_when_time_is_up_then_sinks_are_free_and_its_log_names_the_call(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Given a rank 0 that can do without the rank that is stuck, then that one tells sinks."""
    use(site)
    monkeypatch.setattr(source_rank, "SourceWatch", impatient)
    opens, never = ReadTransport.open, {"update_timeout": 10 * DEADLINE}

    def is_free_in_time(seconds: float) -> bool:
        until = tmp_path / f"{seconds:g}"
        monkeypatch.setattr(ReadTransport, "open", hangs(opens, until))
        settings = {"update_timeout": seconds, "transport": READ, "coordinator": f"ipc://{tmp_path}/rank0-{seconds:g}"}
        with (
            fleet(SinkSpec(model=SHAPE, site=site, settings=never)) as (sink,),
            ParameterServer(
                Config.load(**{**PATIENT, "join_timeout": seconds, **settings}), rank=1, world_size=2
            ) as us,
            ThreadPoolExecutor(1) as threads,
        ):
            lead = SourceProcess(
                [sink.address],
                settings={**settings, "join_timeout": seconds},
                world_size=2,
                shape=SHAPE,
                prepare=partial(use, site),
            )
            us.register("v2", tensors=dict(list(weights(2, **SHAPE).items())[1::2]))
            update = threads.submit(us.update, "v2", [sink.address])
            try:
                while not update.done() and "is stuck" not in caplog.text:
                    time.sleep(stuck.TICK_SECONDS)
                if not stuck.hanging(until).exists():
                    lead.outcome()
                    return False
                assert not update.done(), "nobody can end the call"
                assert "update_timeout" in lead.outcome()
                assert sink.state().holds(weights(1, **SHAPE))
                takes_another_update(sink)
            finally:
                until.touch()
            assert update.exception(DEADLINE) is not None
        return True

    with_enough_seconds(is_free_in_time, 8.0)
    said = next(record.getMessage() for record in caplog.records if "is stuck" in record.getMessage())
    assert re.search(rf"source 1 is stuck \(a call has not returned since .* of transport '{READ}' at ", said)
    assert "source rank 0 tells sinks that it is over" in said
