"""Source ranks that find each other, or are told why one of them does not come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from torch._C._distributed_c10d import TCPStore

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import CkptTransportError, JoinError, UpdateAbortedError
from ckpt_transport.update import source
from tests.fleet import SinkSpec, context, fleet, weights
from tests.patience import DEADLINE, PATIENT
from tests.support.ports import free_port

CURE = "for one source pass rank=0, world_size=1"
HASTY = {**PATIENT, "join_timeout": 0.7}


@pytest.fixture
def store() -> TCPStore:
    """A store as torchrun's agent has it."""
    return TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)


def environment(port: int, rank: int, size: int, *, agent: bool = True) -> dict[str, str]:
    found = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in found.items()} | {"TORCHELASTIC_USE_AGENT_STORE": str(agent)}


# -- RANK and WORLD_SIZE of somebody else -------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["an agent's", "the trainer's", "nobody's"])
def test_given_rank_0_alone_then_it_says_why_it_waits_for_others(
    whose: str, store: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given RANK and WORLD_SIZE of another job, and its store or none, then the update ends in time with the cure."""
    port = free_port() if whose == "nobody's" else store.port
    for name, value in environment(port, 0, 4, agent=whose == "an agent's").items():
        monkeypatch.setenv(name, value)
    with fleet(SinkSpec()) as (sink,), ParameterServer(Config.load(**HASTY)) as server:
        server.register("v2", tensors=weights(2))
        expected = f"did not join within 0.7 s: .* 3 other sources are expected because WORLD_SIZE=4; {CURE}"
        with pytest.raises(UpdateAbortedError, match=expected):
            server.update("v2", [sink.address])
        assert sink.state().version == "v1"


def test_given_a_rank_above_0_without_a_store_then_it_says_why_it_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a port where nobody listens, then rank 2 ends within ``join_timeout``, and the message has the cure."""
    for name, value in environment(free_port(), 2, 4).items():
        monkeypatch.setenv(name, value)
    with ParameterServer(Config.load(**HASTY)) as server:
        server.register("v2", tensors=weights(2))
        with pytest.raises(JoinError, match=f"MASTER_PORT.* does not answer within 0.7 s; .*{CURE}"):
            server.update("v2")


def test_given_a_rank_above_0_alone_then_it_says_why_it_waits(
    store: TCPStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Given the store of another job, then rank 2 waits for rank 0 until ``update_timeout``, and says so."""
    for name, value in environment(store.port, 2, 4).items():
        monkeypatch.setenv(name, value)
    with ParameterServer(Config.load(**{**PATIENT, "update_timeout": 0.7})) as server:
        server.register("v2", tensors=weights(2))
        with pytest.raises(JoinError, match=f"source rank 0 did not lead an update to 'v2' within 0.7 s.*{CURE}"):
            server.update("v2")
    assert "waiting up to" in caplog.text


def test_given_a_rank_0_that_is_not_at_its_address_then_the_other_names_it_and_the_version(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it has ended or comes late cannot be told apart: it may be started anew."""
    monkeypatch.setattr(source, "TELL_SECONDS", 0.0)
    where = f"ipc://{tmp_path}/meet.sock"
    config = Config.load(**{**PATIENT, "update_timeout": 0.7, "coordinator": where})
    with ParameterServer(config, rank=1, world_size=2) as server:
        server.register("v2", tensors=weights(2))
        with pytest.raises(JoinError, match=f"source rank 0 at {where} did not lead an update to 'v2' within 0.7 s"):
            server.update("v2")
    assert f"more for source rank 0 at {where} to lead an update to 'v2'; is it running" in caplog.text


@pytest.mark.parametrize(
    ("number", "rank", "listens"),
    [(signal.SIGINT, 0, True), (signal.SIGTERM, 2, True), (signal.SIGINT, 2, False), (signal.SIGTERM, 0, False)],
)
def test_given_a_source_that_waits_for_others_when_a_signal_comes_then_it_ends_at_once(
    number: signal.Signals, rank: int, listens: bool, store: TCPStore
) -> None:
    """Given a source that waits for others that do not come, when a signal comes, then it ends at once."""
    program = (
        "import signal, sys, torch\n"
        "from ckpt_transport import ParameterServer, Config\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "with ParameterServer(Config.load(join_timeout=600)) as server:\n"
        "    server.register('v2', tensors={'weight': torch.ones(4)})\n"
        "    print('go', flush=True)\n"
        "    server.update('v2', ['ipc:///tmp/nobody-is-here'])\n"
    )
    environ = {**os.environ, **environment(store.port if listens else free_port(), rank, 4, agent=listens)}
    with subprocess.Popen([sys.executable, "-c", program], env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(number)
        assert process.wait(DEADLINE / 2) in (143, -signal.SIGINT, 1)


# -- one that does not come ---------------------------------------------------------------------------------------


def run_rank(environ: Mapping[str, str], settings: Mapping[str, Any], sink: str, kind: str, pipe: Connection) -> None:
    """A source rank that goes wrong in one way, or does all it should."""
    os.environ.update(environ)
    try:
        with ParameterServer(Config.load(**{**PATIENT, **settings})) as server:
            if kind == "escapes":
                raise ValueError("no weights today")
            try:
                own = {"nothing": {}, "fails": {"weight": None}}.get(kind, weights(2))
                server.register("v2", tensors=own)  # type: ignore[arg-type]
                server.update("v2", [sink] if server.rank == 0 else None)
                outcome = ""
            except CkptTransportError as error:
                outcome = f"{type(error).__name__}: {error}"
            pipe.send(outcome)
            pipe.recv()
    except ValueError:
        pipe.send("escaped")


class Rank:
    def __init__(self, rank: int, port: int, settings: Mapping[str, Any], sink: str, kind: str) -> None:
        self._pipe, theirs = context.Pipe()
        arguments = environment(port, rank, 2), settings, sink, kind, theirs
        self._process = context.Process(target=run_rank, args=arguments, daemon=True)
        self._process.start()

    def outcome(self) -> str:
        assert self._pipe.poll(DEADLINE), "the rank does not end"
        return str(self._pipe.recv())

    def end(self) -> None:
        self._pipe.send("end")
        self._process.join(DEADLINE)
        assert self._process.exitcode == 0


def run_ranks(store: TCPStore, settings: Mapping[str, Any], sink: str, *kinds: str) -> list[str]:
    """What becomes of each rank, all of which live until all have said it."""
    ranks = [Rank(number, store.port, settings, sink, kind) for number, kind in enumerate(kinds)]
    outcomes = [rank.outcome() for rank in ranks]
    for rank in ranks:
        rank.end()
    return outcomes


@pytest.mark.parametrize("where", ["store", "address"])
def test_given_two_ranks_of_which_one_holds_nothing_then_the_other_sends_all(where: str, store: TCPStore) -> None:
    """Given two ranks of which one has no tensors, then the other sends all of them."""
    with fleet(SinkSpec()) as (sink,):
        settings = {"coordinator": f"{sink.address}-c"} if where == "address" else {}
        assert run_ranks(store, settings, sink.address, "holds", "nothing") == ["", ""]
        assert sink.state().holds(weights(2))


@pytest.mark.parametrize("where", ["store", "address"])
def test_given_a_rank_that_could_not_register_then_rank_0_hears_why(where: str, store: TCPStore) -> None:
    """Given a rank whose ``register`` fails and that does nothing more, then rank 0 ends at once and says why."""
    with fleet(SinkSpec()) as (sink,):
        settings = {"coordinator": f"{sink.address}-c"} if where == "address" else {}
        led, failed = run_ranks(store, settings, sink.address, "holds", "fails")
        assert failed.startswith("CheckpointError")
        assert "source rank 1 takes no part in the update: it could not take the version in: CheckpointError" in led
        assert sink.state().version == "v1"


def test_given_rank_0_that_could_not_register_then_ranks_above_hear_why(store: TCPStore) -> None:
    """Given a rank 0 whose ``register`` fails, then nobody waits for it."""
    with fleet(SinkSpec()) as (sink,):
        failed, followed = run_ranks(store, {}, sink.address, "fails", "holds")
        assert failed.startswith("CheckpointError")
        assert followed.startswith("JoinError: source rank 0 takes no part")
        assert "could not take the version in: CheckpointError" in followed


def test_given_an_update_of_rank_0_that_was_refused_then_ranks_above_hear_that(store: TCPStore) -> None:
    """Given a rank 0 that is given an address that is none, then the others hear that at once."""
    led, followed = run_ranks(store, {}, "nowhere", "holds", "holds")
    assert led.startswith("ConfigError: 'nowhere' is not an address")
    assert followed == f"JoinError: source rank 0 has given up the update to 'v2': {led}"


def test_given_a_rank_that_an_error_ends_then_rank_0_says_which(store: TCPStore) -> None:
    """Given a rank that an error ends before it has registered anything, then rank 0 says which."""
    with fleet(SinkSpec()) as (sink,):
        ranks = [Rank(number, store.port, {}, sink.address, kind) for number, kind in enumerate(("holds", "escapes"))]
        assert ranks[1].outcome() == "escaped"
        told = "source rank 1 takes no part in the update: it was closed after ValueError: no weights"
        assert told in ranks[0].outcome()
        ranks[0].end()
