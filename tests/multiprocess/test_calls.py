"""Calls of one object from several threads, after its end, and from inside itself."""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from ckpt_transport import Config, Holder, Joiner, ParameterServer, Report, ask_version
from ckpt_transport.errors import UpdateAbortedError, UsageError
from tests.fleet import SinkSpec, fleet, weights
from tests.patience import DEADLINE, PATIENT

CONFIG = Config.load(**PATIENT)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@contextmanager
def updating(
    server: ParameterServer, version: str, address: str, threads: ThreadPoolExecutor
) -> Iterator[Future[Report | None]]:
    """An update on another thread that has everybody ready, and goes on when the block ends."""
    ready, go = threading.Event(), threading.Event()

    def wait() -> None:
        ready.set()
        assert go.wait(DEADLINE)

    running = threads.submit(server.update, version, [address], None, wait)
    try:
        assert ready.wait(DEADLINE)
        yield running
    finally:
        go.set()


def test_given_two_threads_that_update_by_one_server_then_one_comes_after_the_other(
    threads: ThreadPoolExecutor,
) -> None:
    """Given one server, when two threads update two sinks by it again and again, then all updates succeed."""
    with fleet(SinkSpec(), SinkSpec()) as sinks, ParameterServer(CONFIG) as server:
        for seed in (2, 3):
            server.register(f"v{seed}", tensors=weights(seed))
        for _ in range(5):
            updates = [threads.submit(server.update, f"v{2 + k}", [sink.address]) for k, sink in enumerate(sinks)]
            assert all(update.result(DEADLINE) for update in updates)
        assert sinks[0].state().holds(weights(2))
        assert sinks[1].state().holds(weights(3))


def test_given_an_update_that_runs_when_a_version_is_registered_then_that_does_not_wait(
    threads: ThreadPoolExecutor,
) -> None:
    """Given an update that runs, then ``register`` does not wait for it, and the version arrives with the next."""
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        server.register("v2", tensors=weights(2))
        with updating(server, "v2", sink.address, threads) as running:
            server.register("v3", tensors=weights(3))
            assert not running.done()
        assert running.result(DEADLINE)
        assert sink.state().holds(weights(2))
        server.update("v3", [sink.address])
        assert sink.state().holds(weights(3))


def test_given_an_update_that_runs_when_its_version_is_unregistered_then_that_waits_for_its_end(
    threads: ThreadPoolExecutor,
) -> None:
    """Given an update that runs, when another thread unregisters its version, then that happens afterwards."""
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        server.register("v2", tensors=weights(2))
        with updating(server, "v2", sink.address, threads) as running:
            letting_go = threads.submit(server.unregister, "v2")
            with pytest.raises(TimeoutError):
                letting_go.result(0.3)
        assert running.result(DEADLINE)
        letting_go.result(DEADLINE)
        assert sink.state().holds(weights(2))


def test_given_an_update_that_runs_when_the_server_is_closed_then_it_ends_well_and_what_comes_after_is_refused(
    threads: ThreadPoolExecutor,
) -> None:
    """Given an update that runs and another that waits, when the server is closed, then the first one succeeds."""
    with fleet(SinkSpec()) as (sink,):
        server = ParameterServer(CONFIG)
        server.register("v2", tensors=weights(2))
        with updating(server, "v2", sink.address, threads) as running:
            closing = threads.submit(server.close)
            with pytest.raises(TimeoutError):
                closing.result(0.3)
            calls: tuple[Callable[[], Any], ...] = (
                lambda: server.update("v2", [sink.address]),
                lambda: server.register("v3", tensors=weights(3)),
                lambda: server.lend("v3", weights(3)),
                lambda: server.unregister("v2"),
            )
            for call in calls:
                with pytest.raises(UsageError, match="this ParameterServer was closed; make another one"):
                    call()
        assert running.result(DEADLINE)
        closing.result(DEADLINE)
        server.close()
        assert sink.state().holds(weights(2))


def interrupt_main_thread_in(method: str) -> None:
    """Send Ctrl-C once the main thread is in that method of a server."""
    main = threading.main_thread().ident
    assert main is not None
    deadline = time.monotonic() + DEADLINE
    while method not in [code.name for code in traceback.extract_stack(sys._current_frames()[main])]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.1)
    signal.pthread_kill(main, signal.SIGINT)


def test_given_a_call_that_waits_for_another_when_it_is_interrupted_then_only_that_one_ends(
    threads: ThreadPoolExecutor,
) -> None:
    """Given an update that runs, when Ctrl-C comes to a thread that waits with its own, then only that one ends."""
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        server.register("v2", tensors=weights(2))
        with updating(server, "v2", sink.address, threads) as running:
            interrupting = threads.submit(interrupt_main_thread_in, "update")
            with pytest.raises(KeyboardInterrupt):
                server.update("v2", [sink.address])
            interrupting.result(DEADLINE)
        assert running.result(DEADLINE)
        assert sink.state().holds(weights(2))


def test_given_a_call_that_waits_for_another_too_long_then_it_is_told_for_which(threads: ThreadPoolExecutor) -> None:
    """Given an update that runs, when another has waited for as long as it may, then the first is named."""
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        server.register("v2", tensors=weights(2))
        waited = pytest.raises(UsageError, match=r"unregister\('v2'\) has waited 0.5 s for update\('v2'\)")
        with updating(server, "v2", sink.address, threads) as running, waited:
            server._patience = 0.5
            server.unregister("v2")
        assert running.result(DEADLINE)
        assert sink.state().holds(weights(2))


@pytest.mark.parametrize("name", ["update", "unregister", "close"])
def test_given_a_call_from_inside_an_update_then_it_is_refused_and_ends_it(name: str) -> None:
    """Given a callback that calls the server which calls it, then it is refused by name, and the old version stays."""
    with fleet(SinkSpec()) as (sink,), ParameterServer(CONFIG) as server:
        server.register("v2", tensors=weights(2))
        arguments = {"update": ("v2", [sink.address]), "unregister": ("v2",), "close": ()}[name]

        def calls_back() -> None:
            getattr(server, name)(*arguments)

        with pytest.raises(UpdateAbortedError, match=rf"{name}\(.*\) was called inside update\('v2'\)"):
            server.update("v2", [sink.address], before_hold=calls_back)
        assert sink.state().version == "v1"
        server.update("v2", [sink.address])


def test_given_a_joiner_and_engines_of_two_threads_then_one_comes_in_after_the_other(
    threads: ThreadPoolExecutor, tmp_path: Any
) -> None:
    """Given a holder, which can follow one update at a time, when two threads join two sinks, then both arrive."""
    with fleet(SinkSpec(), SinkSpec()) as sinks, Holder("v2", tensors=weights(2), config=CONFIG).start() as holder:
        holder.address_file.save(tmp_path / "metas", CONFIG)
        joiner = Joiner([tmp_path / "metas"], CONFIG)
        joining = [threads.submit(joiner.update, "v2", [sink.address]) for sink in sinks]
        assert all(join.result(DEADLINE).paused for join in joining)
        assert all(sink.state().holds(weights(2)) for sink in sinks)


def test_given_a_holder_that_another_thread_serves_when_it_is_closed_then_it_ends(threads: ThreadPoolExecutor) -> None:
    """Given a holder on a thread of its own making, when it is closed, then it ends, and cannot be used any more."""
    holder = Holder("v2", tensors=weights(2), config=CONFIG)
    serving = threads.submit(holder.serve)
    assert ask_version(holder.address, CONFIG, timeout=DEADLINE).version == "v2"
    with pytest.raises(UsageError, match=r"serve\(\)"):
        holder.serve()
    holder.close()
    serving.result(DEADLINE)
    for call in (holder.start, holder.serve):
        with pytest.raises(UsageError, match="this holder was closed"):
            call()


def test_given_a_holder_that_was_started_when_it_is_started_again_then_that_is_refused() -> None:
    twice = pytest.raises(UsageError, match="this holder was started already")
    with Holder("v2", tensors=weights(2), config=CONFIG).start() as holder, twice:
        holder.start()
