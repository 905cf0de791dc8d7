"""A trainer stages a version while engines serve, and chooses the moment of the commit."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from ckpt_transport import Config, ParameterServer, Report, StagedJob, ask_version
from ckpt_transport.errors import UpdateAbortedError, UsageError
from tests.fleet import SinkProcess, SinkSpec, context, fleet, weights
from tests.leftovers import started_here
from tests.patience import DEADLINE, PATIENT, with_enough_seconds

SHAPE: dict[str, Any] = {"layers": 6, "width": 256}


def server_for(**settings: Any) -> ParameterServer:
    return ParameterServer(Config.load(**{**PATIENT, **settings}))


def staged(server: ParameterServer, seed: int, sinks: list[SinkProcess]) -> StagedJob[Report]:
    server.register(f"v{seed}", tensors=weights(seed, **SHAPE))
    return server.stage(f"v{seed}", [sink.address for sink in sinks])


def check_all_serve(sinks: list[SinkProcess], seed: int) -> None:
    for sink in sinks:
        state = sink.wait_until(lambda state: not state.served)
        assert (state.version, state.tainted) == (f"v{seed}", "")
        assert state.holds(weights(seed, **SHAPE))


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_given_a_staged_version_when_it_is_committed_then_it_is_served_as_it_was_when_it_was_staged(
    transport: str,
) -> None:
    """Meanwhile the trainer goes on: lent tensors change, and the version is unregistered."""
    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE)) as sinks, server_for(transport=transport) as server:
        for seed in (2, 3):
            tensors = weights(seed, **SHAPE)
            server.lend(f"v{seed}", tensors)
            job = server.stage(f"v{seed}", [sink.address for sink in sinks])
            check_all_serve(sinks, seed - 1)
            server.unregister(f"v{seed}")
            for tensor in tensors.values():
                tensor.zero_()
            report = job.commit()
            assert report is not None
            assert (report.version, report.staged) == (f"v{seed}", True)
            phases = list(report.phases)
            assert phases.index("run") < phases.index("wait") < phases.index("hold") < phases.index("end")
            assert sorted(report.paused) == [1, 2]
            check_all_serve(sinks, seed)
        assert server.rollback([sink.address for sink in sinks]).version == "v2"


def test_given_a_staged_version_when_it_is_dropped_then_the_old_one_is_served_and_sinks_are_free_for_others() -> None:
    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE)) as sinks, server_for() as server, server_for() as other:
        job = staged(server, 2, sinks)
        assert ask_version(sinks[0].address, server.config, timeout=DEADLINE).update == "v2"
        assert repr(job) == "<StagedJob of 'v2': waits for its commit>"
        job.drop()
        job.drop()
        assert repr(job) == "<StagedJob of 'v2': has ended>"
        check_all_serve(sinks, 1)
        with pytest.raises(UpdateAbortedError, match="'v2' was dropped"):
            job.commit()
        staged(other, 3, sinks).commit()
        check_all_serve(sinks, 3)
        with server.stage("v2", [sink.address for sink in sinks]) as again:
            pass
        check_all_serve(sinks, 3)
        with pytest.raises(UpdateAbortedError, match="dropped"):
            again.commit()


def test_given_a_version_that_was_committed_then_it_cannot_be_committed_again_nor_dropped() -> None:
    with fleet(SinkSpec(SHAPE)) as sinks, server_for() as server:
        with staged(server, 2, sinks) as job:
            job.commit()
        with pytest.raises(UsageError, match="'v2' was committed already"):
            job.commit()
        job.drop()
        check_all_serve(sinks, 2)


def test_given_a_staged_version_when_its_thread_updates_then_that_is_refused_with_the_cure() -> None:
    """It would wait for itself."""
    with fleet(SinkSpec(SHAPE)) as sinks, server_for() as server, staged(server, 2, sinks) as job:
        calls: tuple[Callable[[], object], ...] = (
            lambda: server.update("v2", [sinks[0].address]),
            lambda: server.stage("v2", [sinks[0].address]),
            lambda: server.rollback([sinks[0].address]),
        )
        for call in calls:
            with pytest.raises(UsageError, match=r"would wait for stage\('v2'\).*commit it or drop it before"):
                call()
        job.commit()
        check_all_serve(sinks, 2)


def test_given_a_staged_version_when_another_server_updates_then_it_hears_what_it_waits_for() -> None:
    with fleet(SinkSpec(SHAPE)) as sinks, server_for() as server:
        job = staged(server, 2, sinks)

        def says_it(seconds: float) -> bool:
            with server_for(join_timeout=seconds) as other:
                other.register("v3", tensors=weights(3, **SHAPE))
                with pytest.raises(UpdateAbortedError, match=r"did not join|takes part") as refused:
                    other.update("v3", [sinks[0].address])
            return "takes part in an update to 'v2'" in str(refused.value)

        with_enough_seconds(says_it)
        job.commit()
        check_all_serve(sinks, 2)


def staged_in_time(server: ParameterServer, sinks: list[SinkProcess]) -> StagedJob[Report] | None:
    """Version 2, unless that takes longer than an update may."""
    try:
        return staged(server, 2, sinks)
    except UpdateAbortedError:
        return None


def test_given_a_staged_version_that_waits_for_longer_than_an_update_may_take_then_it_is_committed_all_the_same() -> (
    None
):
    def waits(seconds: float) -> bool:
        brief = {"update_timeout": seconds}
        with fleet(SinkSpec(SHAPE, settings=brief)) as sinks, server_for(**brief) as server:
            if (job := staged_in_time(server, sinks)) is not None:
                time.sleep(seconds + 1)
                job.commit()
                check_all_serve(sinks, 2)
        return job is not None

    with_enough_seconds(waits)


def test_given_a_staged_version_that_nobody_commits_in_time_then_sinks_let_go_of_it_and_the_commit_says_why() -> None:
    def waits(seconds: float) -> bool:
        brief = {"update_timeout": seconds, "commit_timeout": 0.01}
        with fleet(SinkSpec(SHAPE)) as sinks, server_for(**brief) as server:
            if (job := staged_in_time(server, sinks)) is not None:
                while ask_version(sinks[0].address, server.config, timeout=DEADLINE).update:
                    pass
                check_all_serve(sinks, 1)
                with pytest.raises(UpdateAbortedError, match=r"not committed within 0.01 s \(commit_timeout\)"):
                    job.commit()
                check_all_serve(sinks, 1)
        return job is not None

    with_enough_seconds(waits)


def test_given_a_sink_that_cannot_stage_then_staging_is_refused_with_the_reason() -> None:
    with fleet(SinkSpec(SHAPE, settings={"staging_budget": "1KiB"})) as sinks, server_for() as server:
        with pytest.raises(UpdateAbortedError, match="staging_budget is 1,024"):
            staged(server, 2, sinks)
        server.update("v2", [sinks[0].address])
        check_all_serve(sinks, 2)


def test_given_a_staged_version_when_the_server_is_closed_then_sinks_are_as_before_and_free() -> None:
    with fleet(SinkSpec(SHAPE)) as sinks, server_for() as other:
        with server_for() as server:
            job = staged(server, 2, sinks)
        check_all_serve(sinks, 1)
        with pytest.raises(UsageError, match="was closed"):
            job.commit()
        job.drop()
        staged(other, 3, sinks).commit()
        check_all_serve(sinks, 3)


def interrupts(*_: Any) -> None:
    raise KeyboardInterrupt


def test_given_an_interrupt_while_a_version_is_staged_then_nothing_has_changed_and_the_next_is_staged() -> None:
    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE)) as sinks, server_for() as server:
        server.register("v2", tensors=weights(2, **SHAPE))
        with pytest.raises(KeyboardInterrupt) as caught:
            server.stage("v2", [sink.address for sink in sinks], interrupts)
        assert isinstance(caught.value.__cause__, UpdateAbortedError)
        check_all_serve(sinks, 1)
        staged(server, 3, sinks).commit()
        check_all_serve(sinks, 3)


def test_given_an_interrupt_while_a_version_is_committed_then_nothing_has_changed_and_it_has_ended() -> None:
    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE)) as sinks, server_for() as server:
        job = staged(server, 2, sinks)
        with pytest.raises(KeyboardInterrupt) as caught:
            job.commit(before_hold=interrupts)
        assert isinstance(caught.value.__cause__, UpdateAbortedError)
        check_all_serve(sinks, 1)
        with pytest.raises(UsageError, match="failed to be"):
            job.commit()
        server.update("v2", [sink.address for sink in sinks])
        check_all_serve(sinks, 2)


# -- several source ranks ---------------------------------------------------------------------------------------------


def run_rank(rank: int, settings: dict[str, Any], sinks: list[str], calls: list[str], pipe: Connection) -> None:
    """A source rank that makes these calls, the first of which stages or updates; it says how each has ended."""
    tensors = weights(2, **SHAPE)
    own = dict(list(tensors.items())[rank::2])
    with ParameterServer(Config.load(**{**PATIENT, **settings}), rank=rank, world_size=2) as server:
        server.register("v2", tensors=own)
        target: Any = server
        for call in calls:
            try:
                done = getattr(target, call)(*(("v2", sinks) if target is server else ()))
                target = done if call == "stage" else target
                pipe.send(f"{call}: {type(done).__name__}")
            except Exception as error:
                pipe.send(f"{call}: {type(error).__name__}: {error}")
            pipe.recv()


class Rank:
    """A source rank in a process of its own."""

    def __init__(self, rank: int, settings: dict[str, Any], sinks: list[str], calls: list[str]) -> None:
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=run_rank, args=(rank, settings, sinks, calls, theirs), daemon=True)
        self.process.start()
        started_here(self.process)
        theirs.close()

    def says(self) -> str:
        assert self._pipe.poll(DEADLINE)
        return str(self._pipe.recv())

    def go_on(self) -> None:
        self._pipe.send("go on")


def ranks_for(tmp_path: Path, sinks: list[SinkProcess], *calls: list[str]) -> list[Rank]:
    settings = {"coordinator": f"ipc://{tmp_path}/lead", "transport": "shm"}
    return [Rank(rank, settings, [sink.address for sink in sinks], each) for rank, each in enumerate(calls)]


def test_given_two_source_ranks_then_both_stage_and_rank_0_says_when_it_is_committed(tmp_path: Path) -> None:
    with fleet(SinkSpec(SHAPE), SinkSpec(SHAPE)) as sinks:
        ranks = ranks_for(tmp_path, sinks, ["stage", "commit"], ["stage", "commit"])
        assert [rank.says() for rank in ranks] == ["stage: StagedJob", "stage: StagedJob"]
        check_all_serve(sinks, 1)
        ranks[1].go_on()
        check_all_serve(sinks, 1)
        ranks[0].go_on()
        assert [rank.says() for rank in ranks] == ["commit: Report", "commit: NoneType"]
        check_all_serve(sinks, 2)
        for rank in ranks:
            rank.go_on()
            rank.process.join(DEADLINE)


def test_given_two_source_ranks_when_rank_0_drops_the_version_then_the_other_hears_it_at_its_commit(
    tmp_path: Path,
) -> None:
    with fleet(SinkSpec(SHAPE)) as sinks:
        ranks = ranks_for(tmp_path, sinks, ["stage", "drop"], ["stage", "commit"])
        assert [rank.says() for rank in ranks] == ["stage: StagedJob", "stage: StagedJob"]
        for rank in ranks:
            rank.go_on()
        assert ranks[0].says() == "drop: NoneType"
        assert "UpdateAbortedError: 'v2' was dropped" in ranks[1].says()
        check_all_serve(sinks, 1)
        for rank in ranks:
            rank.go_on()
            rank.process.join(DEADLINE)


def test_given_two_source_ranks_when_one_drops_the_version_then_rank_0_cannot_commit_it(tmp_path: Path) -> None:
    with fleet(SinkSpec(SHAPE)) as sinks:
        ranks = ranks_for(tmp_path, sinks, ["stage", "commit"], ["stage", "drop"])
        assert [rank.says() for rank in ranks] == ["stage: StagedJob", "stage: StagedJob"]
        ranks[1].go_on()
        assert ranks[1].says() == "drop: NoneType"
        ranks[0].go_on()
        told = ranks[0].says()
        assert "UpdateAbortedError" in told
        assert "'v2' was dropped" in told
        check_all_serve(sinks, 1)
        for rank in ranks:
            rank.go_on()
            rank.process.join(DEADLINE)


def test_given_two_source_ranks_of_which_one_stages_and_rank_0_updates_then_both_are_told_so(tmp_path: Path) -> None:
    with fleet(SinkSpec(SHAPE)) as sinks:
        ranks = ranks_for(tmp_path, sinks, ["update"], ["stage"])
        for rank in ranks:
            assert "source rank 0 says update(), and source rank 1 says stage()" in rank.says()
        check_all_serve(sinks, 1)
        for rank in ranks:
            rank.go_on()
            rank.process.join(DEADLINE)
