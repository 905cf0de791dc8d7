"""What an update's report says about time, and what is found out only once."""

from __future__ import annotations

import importlib.metadata
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.multiprocessing.reductions import StorageWeakRef

from ckpt_transport import Config, ParameterServer
from ckpt_transport.execution import now
from ckpt_transport.planning import RingUse, StageKind
from tests.fleet import SinkSpec, by_name, fleet, weights
from tests.patience import DEADLINE, PATIENT

CONFIG = Config.load(**PATIENT)
PHASES = ["begin", "join", "plan", "agree", "connect", "hold", "run", "commit", "end"]


def test_given_an_update_then_its_phases_follow_each_other_and_add_up_to_the_whole_call() -> None:
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        server.register("v2", tensors=weights(2))
        called = time.monotonic()
        report = server.update("v2", [sink.address])
        returned = time.monotonic()
    assert report is not None
    assert list(report.phases) == PHASES
    assert report.seconds == sum(report.phases.values())
    assert report.seconds <= returned - called


def test_given_a_call_that_waits_for_another_then_that_counts_as_its_beginning() -> None:
    """Given an update that is stopped before its hold, when another is called, then the wait is in the other's report.

    What the second one takes is compared with a span that lies wholly inside its wait.
    """
    ready, go = threading.Event(), threading.Event()

    def stop() -> None:
        ready.set()
        assert go.wait(DEADLINE)

    with (
        fleet(SinkSpec()) as (sink,),
        ParameterServer(CONFIG) as server,
        ThreadPoolExecutor(2) as threads,
    ):
        server.register("v2", tensors=weights(2))
        first = threads.submit(server.update, "v2", [sink.address], None, stop)
        assert ready.wait(DEADLINE)
        second = threads.submit(server.update, "v2", [sink.address])
        deadline = time.monotonic() + DEADLINE
        while not server._turns.waiting:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            second.result(0.1)
        waited = time.monotonic() - began
        go.set()
        assert first.result(DEADLINE)
        report = second.result(DEADLINE)
    assert report is not None
    assert report.phases["begin"] > waited


def test_given_updates_by_p2p_then_their_phases_add_up_too() -> None:
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        server.register("v2", tensors=weights(2))
        report = server.update_p2p("v2", [sink.address])
    assert report is not None
    assert list(report.phases) == PHASES


def test_given_a_second_update_then_no_installed_package_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given ``transport = "auto"``, when versions follow each other, then what is installed was found out before."""
    searches: list[dict[str, str]] = []
    search = importlib.metadata.entry_points

    def counted(**chosen: str) -> Any:
        searches.append(chosen)
        return search(**chosen)

    monkeypatch.setattr(importlib.metadata, "entry_points", counted)
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        for seed in (2, 3):
            server.register(f"v{seed}", tensors=weights(seed))
            searches.clear()
            server.update(f"v{seed}", [sink.address])
        assert searches == []
        assert sink.state().holds(weights(3))


def test_given_lent_tensors_then_slots_are_filled_before_forward_passes_are_held() -> None:
    """Given more buckets than slots, when they are sent, then every slot was filled once before the hold."""
    config = Config.load(transport="shm", bucket_bytes="300KiB", ring_depth=3, **PATIENT)
    held: list[float] = []
    with fleet(SinkSpec(loader=by_name)) as (sink,), ParameterServer(config) as server:
        server.lend("v2", weights(2))
        report = server.update("v2", [sink.address], before_hold=lambda: held.append(now()))
        assert sink.state().holds(weights(2))
    assert report is not None
    fills = [event for event in report.timeline if event.kind is StageKind.FILL]
    assert len(fills) == len(report.plan.buckets) > 3
    ring = report.plan.ring(0, RingUse.FILL)
    assert ring is not None
    assert [event.end < held[0] for event in fills] == [True] * ring.depth + [False] * (len(fills) - ring.depth)


def test_given_lent_tensors_that_were_sent_then_the_server_keeps_none_of_them() -> None:
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        lent = weights(2)
        weakly: Any = StorageWeakRef
        memory = [weakly(tensor.untyped_storage()) for tensor in lent.values()]
        server.lend("v2", lent)
        server.update("v2", [sink.address])
        server.unregister("v2")
        lent.clear()
        deadline = time.monotonic() + DEADLINE
        while not all(storage.expired() for storage in memory):
            assert time.monotonic() < deadline, "it keeps some"
            time.sleep(0.01)  # a thread that has filled a slot lets go of its work a moment later
