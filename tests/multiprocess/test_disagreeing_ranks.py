"""Source ranks that do not ask for the same: all hear at once what each says, and the next call that agrees works."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import TCPStore

from ckpt_transport import Config, ParameterServer, rules
from ckpt_transport import Mapping as Rules
from ckpt_transport.errors import CkptTransportError, UsageError
from ckpt_transport.update.turn import Turn
from tests.fleet import SinkProcess, SinkSpec, context, fleet, stop, weights
from tests.leftovers import started_here
from tests.patience import DEADLINE, PATIENT

SHAPE = {"layers": 2, "width": 16}
CURE = "have all source ranks make the same calls, in the same order, with the same options and settings"
Act = Callable[[ParameterServer, str], None]
"""What one rank does, given its server and the address of the sink."""
Bring = Callable[..., None]
"""The same, given a version before."""


def part_of(server: ParameterServer, seed: int) -> dict[str, torch.Tensor]:
    return dict(list(weights(seed, **SHAPE).items())[server.rank :: server.world_size])


def publish(version: str, server: ParameterServer, sink: str, seed: int = 2, **options: Any) -> None:
    server.publish(version, part_of(server, seed), [sink], **options)


def update(version: str, server: ParameterServer, sink: str, by: str = "update", **options: Any) -> None:
    server.register(version, tensors=part_of(server, 2))
    try:
        getattr(server, by)(version, [sink], **options)
    finally:
        server.unregister(version)


update_p2p = partial(update, by="update_p2p")


def stage(version: str, server: ParameterServer, sink: str) -> None:
    server.register(version, tensors=part_of(server, 2))
    try:
        server.stage(version, [sink]).commit()
    finally:
        server.unregister(version)


def run_rank(environ: Mapping[str, str], settings: Mapping[str, Any], sink: str, pipe: Connection) -> None:
    """A source rank that does what it is told, and says what has become of that."""
    os.environ.update(environ)
    with ParameterServer(Config.load(**{**PATIENT, "pool": "private", **settings})) as server:
        while (act := pipe.recv()) != "stop":
            try:
                act(server, sink)
                pipe.send("")
            except CkptTransportError as error:
                pipe.send(f"{type(error).__name__}: {error}")
    pipe.send("stopped")


class Ranks:
    """Running source ranks."""

    def __init__(self, pipes: Sequence[Connection], sink: SinkProcess) -> None:
        self._pipes, self.sink = pipes, sink
        self._number, self._seeds = 1, itertools.count(10)

    def do(self, *acts: Act) -> list[str]:
        """Have each rank do something at the same time; what becomes of it on each."""
        for rank, act in enumerate(acts):
            self.tell(rank, act)
        return [self.outcome(rank) for rank in range(len(acts))]

    def do_one(self, rank: int, act: Act) -> str:
        """Have one rank do something; what becomes of it."""
        self.tell(rank, act)
        return self.outcome(rank)

    def tell(self, rank: int, act: Act) -> None:
        self._pipes[rank].send(act)

    def outcome(self, rank: int) -> str:
        assert self._pipes[rank].poll(DEADLINE), f"rank {rank} does not end"
        return str(self._pipes[rank].recv())

    def fresh(self) -> str:
        """A version that nobody has brought yet."""
        self._number += 1
        return f"v{self._number}"

    def check_agree(self, version: str = "") -> str:
        """The next call on which all agree works; the version that it has brought."""
        version = version or self.fresh()
        seed = next(self._seeds)
        act = partial(publish, version, seed=seed)
        assert self.do(*[act for _ in self._pipes]) == ["" for _ in self._pipes]
        self.check_serves(version, seed)
        return version

    def check_serves(self, version: str, seed: int) -> None:
        state = self.sink.state()
        assert state.version == version
        assert state.holds(weights(seed, **SHAPE))


@contextmanager
def source_ranks(where: str, size: int = 2, settings: Sequence[Mapping[str, Any]] = ()) -> Iterator[Ranks]:
    """Ranks that meet in a store or at an address, and a sink of theirs."""
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    known = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    environ = {name: str(value) for name, value in known.items()} | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    with fleet(SinkSpec(SHAPE)) as (sink,):
        shared = {"coordinator": f"{sink.address}-c"} if where == "address" else {}
        pipes, processes = [], []
        try:
            for rank in range(size):
                ours, theirs = context.Pipe()
                own = {**shared, **(settings[rank] if settings else {})}
                arguments = ({**environ, "RANK": str(rank)}, own, sink.address, theirs)
                processes.append(context.Process(target=run_rank, args=arguments, daemon=True))
                processes[-1].start()
                started_here(processes[-1])
                theirs.close()
                pipes.append(ours)
            yield Ranks(pipes, sink)
        finally:
            for process, pipe in zip(processes, pipes, strict=True):
                stop(process, pipe)


@pytest.fixture(scope="module", params=["store", "address"])
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """Two ranks; each test ends with a call that works."""
    with source_ranks(request.param) as running:
        yield running


RENAMED = Rules.of(rules.Rename("0.weight", "0.weight", optional=True))
DIFFERENT: dict[str, tuple[Bring, Bring, str, str]] = {
    "only": (partial(update, only=["0.weight"]), update, "only=['0.weight']", "only=None"),
    "base": (partial(update, base="v1"), update, "base='v1'", "base=''"),
    "mapping": (partial(publish, mapping=RENAMED), publish, f"mapping={RENAMED}", "mapping=None"),
    "stage": (update, stage, "update()", "stage()"),
    "p2p": (update_p2p, publish, "update_p2p()", "update()"),
}


def check_all_hear(ranks: Ranks, acts: Sequence[Act], said: Sequence[str], speakers: Sequence[int] = (0, 1)) -> None:
    """Each rank hears what two of them say, and the cure; and nothing has changed."""
    before = ranks.sink.state()
    one, two = speakers
    expected = f"source rank {one} says {said[0]}, and source rank {two} says {said[1]}; {CURE}"
    for outcome in ranks.do(*acts):
        assert expected in outcome
    state = ranks.sink.state()
    assert (state.version, state.tainted, state.served) == (before.version, "", "")


@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
@pytest.mark.parametrize("option", DIFFERENT)
def test_given_two_ranks_with_different_options_then_both_hear_what_each_says_and_the_same_call_works_when_they_agree(
    ranks: Ranks, option: str, turned: bool
) -> None:
    ranks.check_agree("v1" if option == "base" else "")
    version = ranks.fresh()
    first, second, *said = DIFFERENT[option]
    order = -1 if turned else 1
    acts = [partial(bring, version) for bring in (first, second)]
    check_all_hear(ranks, acts[::order], said[::order])
    ranks.check_agree(version)


def test_given_two_ranks_with_different_versions_then_both_hear_what_each_says_and_either_works_when_they_agree(
    ranks: Ranks,
) -> None:
    older, newer = ranks.fresh(), ranks.fresh()
    for one, two in ((older, newer), (newer, older)):
        acts = [partial(publish, one), partial(publish, two)]
        check_all_hear(ranks, acts, [f"version='{one}'", f"version='{two}'"])
    ranks.check_agree(older)
    ranks.check_agree(newer)


def test_given_ranks_that_commit_and_supersede_differently_then_the_word_of_rank_0_counts() -> None:
    """Sinks hear these from rank 0 alone. Who publishes makes an update."""
    with source_ranks("store", settings=[{"commit": "staged"}, {}]) as ranks:
        assert ranks.do(partial(publish, "v2", supersede=True), partial(update, "v2")) == ["", ""]
        ranks.check_serves("v2", 2)


def test_given_ranks_of_which_one_finds_deltas_then_both_hear_so() -> None:
    with source_ranks("store", settings=[{"commit": "staged", "delta": delta} for delta in ("off", "on")]) as ranks:
        check_all_hear(ranks, [partial(publish, "v2")] * 2, ["delta='off'", "delta='on' or 'auto'"])


@pytest.mark.parametrize("where", ["store", "address"])
def test_given_three_ranks_of_which_the_last_asks_for_another_version_then_all_hear_so_and_the_next_call_works(
    where: str,
) -> None:
    with source_ranks(where, size=3) as ranks:
        acts = [partial(publish, "41"), partial(publish, "41"), partial(publish, "42")]
        check_all_hear(ranks, acts, ["version='41'", "version='42'"], speakers=(0, 2))
        ranks.check_agree("42")
        check_all_hear(ranks, [*acts[:2], partial(stage, "41")], ["update()", "stage()"], speakers=(0, 2))
        ranks.check_agree("41")


# -- one that fails -----------------------------------------------------------------------------------------------


def fail_to_register(version: str, server: ParameterServer, sink: str) -> None:
    nothing: Any = {"weight": None}
    server.register(version, tensors=nothing)


def fail_to_publish(version: str, server: ParameterServer, sink: str) -> None:
    nothing: Any = {"weight": None}
    server.publish(version, nothing, [sink])


def fail_to_lead(version: str, server: ParameterServer, sink: str) -> None:
    server.publish(version, part_of(server, 2), ["nowhere"])


@pytest.mark.parametrize("same_name", [True, False])
@pytest.mark.parametrize("failing", [fail_to_register, fail_to_publish])
@pytest.mark.parametrize("rank", [0, 1])
def test_given_a_rank_that_cannot_take_the_version_in_when_the_other_comes_late_then_that_hears_why_and_the_next_works(
    ranks: Ranks, rank: int, failing: Bring, same_name: bool
) -> None:
    version = ranks.fresh()
    assert ranks.do_one(rank, partial(failing, version)).startswith("CheckpointError")
    heard = ranks.do_one(1 - rank, partial(publish, version))
    assert "it could not take the version in: CheckpointError" in heard
    ranks.check_agree(version if same_name else "")


def fail_while_inviting(version: str, server: ParameterServer, sink: str) -> None:
    too_large = {name: torch.full_like(tensor, 1e30) for name, tensor in part_of(server, 2).items()}
    server.publish(version, too_large, [sink], mapping=Rules.of(rules.Cast("F16")))


@pytest.mark.parametrize("same_name", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_given_a_rank_0_that_cannot_lend_when_sinks_are_invited_then_the_other_hears_why_and_the_next_call_works(
    ranks: Ranks, late: bool, same_name: bool
) -> None:
    version = ranks.fresh()
    if not late:
        ranks.tell(1, partial(publish, version))
    failed = ranks.do_one(0, partial(fail_while_inviting, version))
    assert failed.startswith("CheckpointError")
    assert "overflow in F16" in failed
    heard = ranks.do_one(1, partial(publish, version)) if late else ranks.outcome(1)
    assert "overflow in F16" in heard
    ranks.check_agree(version if same_name else "")


@pytest.mark.parametrize("same_name", [True, False])
def test_given_a_rank_0_that_has_given_up_when_the_other_comes_late_then_it_hears_why_and_the_next_call_works(
    ranks: Ranks, same_name: bool
) -> None:
    version = ranks.fresh()
    assert ranks.do_one(0, partial(fail_to_lead, version)).startswith("ConfigError: 'nowhere' is not an address")
    heard = ranks.do_one(1, partial(publish, version))
    assert f"source rank 0 has given up the update to '{version}': ConfigError: 'nowhere'" in heard
    ranks.check_agree(version if same_name else "")


def test_given_a_rank_0_that_goes_on_after_a_failure_when_the_other_comes_late_then_both_bring_the_newer(
    ranks: Ranks,
) -> None:
    older, newer = ranks.fresh(), ranks.fresh()
    assert ranks.do_one(0, partial(fail_to_lead, older)).startswith("ConfigError")
    ranks.tell(0, partial(publish, newer))
    assert f"source rank 0 has given up the update to '{older}': ConfigError" in ranks.do_one(
        1, partial(publish, older)
    )
    assert ranks.do_one(1, partial(publish, newer)) == ranks.outcome(0) == ""
    ranks.check_serves(newer, 2)


def test_given_a_rank_that_goes_on_after_a_failure_when_rank_0_comes_late_then_both_bring_the_newer(
    ranks: Ranks,
) -> None:
    older, newer = ranks.fresh(), ranks.fresh()
    assert ranks.do_one(1, partial(fail_to_publish, older)).startswith("CheckpointError")
    ranks.tell(1, partial(publish, newer))
    heard = ranks.do_one(0, partial(publish, older))
    assert "source rank 1 takes no part in the update: it could not take the version in" in heard
    assert ranks.do_one(0, partial(publish, newer)) == ranks.outcome(1) == ""
    ranks.check_serves(newer, 2)


@pytest.mark.parametrize("where", ["store", "address"])
def test_given_a_rank_that_does_not_call_then_rank_0_names_it_in_time_and_the_next_call_works(where: str) -> None:
    with source_ranks(where, settings=[{"join_timeout": 1.0}, {}]) as ranks:
        assert "did not join within 1 s: source rank 1" in ranks.do_one(0, partial(publish, "v2"))
        heard = ranks.do_one(1, partial(publish, "v2"))
        assert "source rank 0 has given up the update to 'v2'" in heard
        ranks.tell(1, partial(publish, "v3"))
        assert ranks.do_one(0, partial(publish, "v3")) == ranks.outcome(1) == ""
        ranks.check_serves("v3", 2)


# -- threads, tasks and forks -------------------------------------------------------------------------------------


def publish_in_threads(first: str, second: str, server: ParameterServer, sink: str) -> None:
    """Two threads call while this one keeps the server busy, so that their order is known."""

    def wait_for(waiting: int) -> None:
        until = time.monotonic() + DEADLINE
        while server._turns.waiting < waiting:
            assert time.monotonic() < until
            time.sleep(0.01)

    busy = Turn("a test")
    server._turns.take(busy, DEADLINE)
    with ThreadPoolExecutor(2) as threads:
        calls = []
        for number, version in enumerate((first, second), 1):
            calls.append(threads.submit(publish, version, server, sink, seed=number))
            wait_for(number)
        busy.ended = True
        server._turns.pass_on()
        for call in calls:
            call.result(DEADLINE)


def cancel(version: str, server: ParameterServer, sink: str) -> None:
    async def cancelled() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(server.awaiting(publish, version, server, sink), 0.5)

    asyncio.run(cancelled())


def publish_in_a_child(version: str, server: ParameterServer, sink: str) -> None:
    said, says = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            publish(version, server, sink)
        except UsageError as error:
            os.write(says, str(error).encode())
        finally:
            os._exit(0)
    os.close(says)
    with open(said) as pipe:
        refused = pipe.read()
    os.waitpid(child, 0)
    assert "this ParameterServer was made in process" in refused


def test_given_two_threads_that_call_at_once_on_each_rank_then_they_are_served_one_after_the_other(
    ranks: Ranks,
) -> None:
    first, second = ranks.fresh(), ranks.fresh()
    act = partial(publish_in_threads, first, second)
    assert ranks.do(act, act) == ["", ""]
    ranks.check_serves(second, 2)


def test_given_two_threads_whose_calls_have_another_order_on_each_rank_then_both_ranks_hear_so(ranks: Ranks) -> None:
    one, two = ranks.fresh(), ranks.fresh()
    acts = [partial(publish_in_threads, one, two), partial(publish_in_threads, two, one)]
    check_all_hear(ranks, acts, [f"version='{one}'", f"version='{two}'"])
    ranks.check_agree()


@pytest.mark.parametrize("rank", [0, 1])
def test_given_a_task_that_is_cancelled_while_it_waits_for_the_other_rank_then_that_hears_so_and_the_next_call_works(
    ranks: Ranks, rank: int
) -> None:
    version = ranks.fresh()
    assert ranks.do_one(rank, partial(cancel, version)) == ""
    other = ranks.do_one(1 - rank, partial(publish, version))
    assert "CancelledError" in other or (rank == 0 and "source rank 0 has given up" in other)
    ranks.check_agree()


def test_given_a_child_of_a_rank_then_it_is_refused_by_name_and_the_next_call_of_its_parent_works(ranks: Ranks) -> None:
    assert ranks.do(*[partial(publish_in_a_child, ranks.fresh())] * 2) == ["", ""]
    ranks.check_agree()
