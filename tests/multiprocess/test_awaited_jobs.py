"""A trainer in an event loop stages a version, and awaits its commit; the loop goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import pytest

from ckpt_transport import AwaitedJob, Config, ParameterServer, Report, StagedJob, ask_version
from ckpt_transport.errors import UpdateAbortedError, UsageError
from tests.fleet import SinkProcess, SinkSpec, fleet, weights
from tests.patience import DEADLINE, PATIENT, SWIFT

SHAPE: dict[str, Any] = {"layers": 6, "width": 256}


class Waypoint:
    """A place in a call at which its thread waits, while the event loop goes on, until it is let go on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reached, self._go_on = asyncio.Event(), threading.Event()

    def __call__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._reached.set)
        assert self._go_on.wait(DEADLINE)

    async def reached(self) -> None:
        await asyncio.wait_for(self._reached.wait(), DEADLINE)

    def go_on(self) -> None:
        self._go_on.set()

    async def cancel_here(self, task: asyncio.Task[Any]) -> BaseException | None:
        """Cancel a task whose call is here; the cause of its error."""
        await self.reached()
        task.cancel()
        for _ in range(10):  # the error is thrown into the task, which has its thread interrupted
            await asyncio.sleep(0)
        self.go_on()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        return cancelled.value.__cause__


def addresses(sinks: Sequence[SinkProcess]) -> list[str]:
    return [sink.address for sink in sinks]


def check_all_serve(sinks: Sequence[SinkProcess], seed: int) -> None:
    for sink in sinks:
        state = sink.wait_until(lambda state: not state.served)
        assert (state.version, state.tainted) == (f"v{seed}", "")
        assert state.holds(weights(seed, **SHAPE))


def check_free(sinks: Sequence[SinkProcess], server: ParameterServer) -> None:
    for sink in sinks:
        assert ask_version(sink.address, server.config, timeout=DEADLINE).update == ""


Train = Callable[[ParameterServer, list[str]], Coroutine[Any, Any, None]]


def run(train: Train, sinks: Sequence[SinkProcess], server: ParameterServer, *seeds: int) -> None:
    for seed in seeds:
        server.register(f"v{seed}", tensors=weights(seed, **SHAPE))
    asyncio.run(train(server, addresses(sinks)))


def server_of(kind: type[ParameterServer] = ParameterServer, settings: Mapping[str, Any] = PATIENT) -> ParameterServer:
    return kind(Config.load(**settings))


def test_given_an_event_loop_then_it_goes_on_while_a_job_is_staged_and_while_it_is_committed() -> None:
    """Each call waits for something that the loop does."""

    async def train(server: ParameterServer, sinks: list[str]) -> None:
        brought, held = Waypoint(), Waypoint()
        staging = asyncio.create_task(server.staging("v2", sinks, brought))
        await brought.reached()
        brought.go_on()
        job = await staging
        assert ask_version(sinks[0], server.config, timeout=DEADLINE).version == "v1"
        server.unregister("v2")
        committing = asyncio.create_task(job.commit(held))
        await held.reached()
        held.go_on()
        report = await committing
        assert report is not None
        assert (report.version, report.staged) == ("v2", True)

    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE)) as sinks, server_of() as server:
        run(train, sinks, server, 2)
        check_all_serve(sinks, 2)


def test_given_a_job_that_is_not_committed_when_its_block_ends_then_sinks_have_let_go_of_it() -> None:
    async def train(server: ParameterServer, sinks: list[str]) -> None:
        with pytest.raises(ValueError, match="diverged"):
            async with await server.staging("v2", sinks):
                raise ValueError("diverged")
        async with await server.staging("v2", sinks) as job:
            await job.drop()
        with pytest.raises(UpdateAbortedError, match="'v2' was dropped"):
            await job.commit()

    with fleet(SinkSpec(SHAPE)) as sinks, server_of() as server:
        run(train, sinks, server, 2)
        check_all_serve(sinks, 1)
        check_free(sinks, server)


def test_given_a_commit_that_is_cancelled_before_sinks_are_told_then_its_cause_says_that_nothing_has_changed() -> None:
    async def train(server: ParameterServer, sinks: list[str]) -> None:
        held = Waypoint()
        job = await server.staging("v2", sinks)
        cause = await held.cancel_here(asyncio.create_task(job.commit(held)))
        assert isinstance(cause, UpdateAbortedError)
        with pytest.raises(UsageError, match="committed already, or failed to be"):
            await job.commit()
        await server.awaiting(server.update, "v3", sinks)

    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE)) as sinks, server_of() as server:
        run(train, sinks, server, 2, 3)
        check_all_serve(sinks, 3)


def test_given_a_task_that_is_cancelled_while_it_stages_then_nothing_is_staged_any_more() -> None:
    async def train(server: ParameterServer, sinks: list[str]) -> None:
        brought = Waypoint()
        cause = await brought.cancel_here(asyncio.create_task(server.staging("v2", sinks, brought)))
        assert isinstance(cause, UpdateAbortedError)

    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE)) as sinks, server_of() as server:
        run(train, sinks, server, 2)
        check_all_serve(sinks, 1)
        check_free(sinks, server)


class StagedBeforeItReturns(ParameterServer):
    """Its ``stage`` has staged the version, and has not returned yet, when ``at`` is called."""

    at: Callable[[], None]

    def stage(self, *args: Any, **kwargs: Any) -> StagedJob[Report]:
        job = super().stage(*args, **kwargs)
        self.at()
        return job


def test_given_a_task_that_is_cancelled_when_all_is_staged_then_no_job_is_left_that_nobody_has() -> None:
    async def train(server: ParameterServer, sinks: list[str]) -> None:
        assert isinstance(server, StagedBeforeItReturns)
        server.at = waypoint = Waypoint()
        await waypoint.cancel_here(asyncio.create_task(server.staging("v2", sinks)))

    with fleet(SinkSpec(SHAPE)) as sinks, server_of(StagedBeforeItReturns) as server:
        run(train, sinks, server, 2)
        check_all_serve(sinks, 1)
        check_free(sinks, server)


def test_given_a_commit_that_fails_then_who_awaits_it_gets_its_error_and_sinks_that_live_serve_what_they_did() -> None:
    async def train(server: ParameterServer, all_sinks: list[str]) -> None:
        job = await server.staging("v2", all_sinks)
        sinks[1].process.kill()
        assert sinks[1].dies()
        with pytest.raises(UpdateAbortedError):
            await job.commit()

    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE)) as sinks, server_of(settings=SWIFT) as server:
        run(train, sinks, server, 2)
        check_all_serve(sinks[:1], 1)


def test_given_two_tasks_that_stage_then_the_second_one_waits_until_the_first_has_committed() -> None:
    async def train(server: ParameterServer, sinks: list[str]) -> None:
        happened: list[str] = []

        async def next_step() -> Report | None:
            job = await server.staging("v3", sinks, lambda *_: happened.append("v3 moves"))
            return await job.commit()

        first = await server.staging("v2", sinks)
        second = asyncio.create_task(next_step())
        await asyncio.sleep(0)
        reports = [await first.commit(lambda: happened.append("v2 is held")), await second]
        assert happened[0] == "v2 is held"
        assert [report.version for report in reports if report is not None] == ["v2", "v3"]

    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE)) as sinks, server_of() as server:
        run(train, sinks, server, 2, 3)
        check_all_serve(sinks, 3)


def test_given_a_task_that_has_staged_when_it_stages_or_updates_again_then_that_is_refused_with_the_cure() -> None:
    """It would wait for itself, although each of its calls runs in a thread of its own."""

    async def train(server: ParameterServer, sinks: list[str]) -> None:
        job = await server.staging("v2", sinks)
        said = r"would wait for stage\('v2'\).*commit it or drop it before"
        with pytest.raises(UsageError, match=said):
            await server.staging("v3", sinks)
        with pytest.raises(UsageError, match=said):
            await server.awaiting(server.update, "v3", sinks)
        await job.commit()

    with fleet(SinkSpec(SHAPE)) as sinks, server_of() as server:
        run(train, sinks, server, 2, 3)
        check_all_serve(sinks, 2)


def test_given_a_task_that_waits_for_another_ones_commit_when_it_is_cancelled_then_it_ends_at_once() -> None:
    """The other one commits afterwards: it would wait for who waits for it."""

    async def train(server: ParameterServer, sinks: list[str]) -> None:
        first: AwaitedJob[Report] = await server.staging("v2", sinks)
        waiting = asyncio.create_task(server.staging("v3", sinks))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await asyncio.wait_for(waiting, DEADLINE)
        assert isinstance(cancelled.value.__cause__, UpdateAbortedError)
        assert await first.commit() is not None

    with fleet(SinkSpec(SHAPE)) as sinks, server_of() as server:
        run(train, sinks, server, 2, 3)
        check_all_serve(sinks, 2)
