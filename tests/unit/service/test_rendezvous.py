"""Source ranks meet in torch's store, however long a look into it takes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from torch._C._distributed_c10d import TCPStore

from ckpt_transport import Config
from ckpt_transport.service import rendezvous
from ckpt_transport.service.lead_tokens import LeadTokens, is_past
from ckpt_transport.service.rendezvous import InStore
from ckpt_transport.service.torch_store import Recheck, wait_only
from ckpt_transport.service.world import World
from tests.patience import DEADLINE


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[InStore, InStore]]:
    """Two source ranks, here in one process, and a store as torchrun's agent has it."""
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(rendezvous, "_numbers", itertools.repeat(0))
    first, second = (InStore(World(rank, 2, "world_size=2"), Config.load(update_timeout=DEADLINE)) for rank in (0, 1))
    yield first, second
    del store


class TwoReaders:
    """Reads what is in the store; the first thread waits for a second one, which goes on when the first has ended."""

    def __init__(self) -> None:
        self._read, self._reads = rendezvous._read, itertools.count()
        self._first = threading.current_thread()
        self._came = threading.Event()

    def __call__(self, *said: Any) -> Any:
        number = next(self._reads)
        if number == 0:
            self._first = threading.current_thread()
            assert self._came.wait(DEADLINE)
        elif number == 1:
            self._came.set()
            self._first.join(DEADLINE)
        return self._read(*said)


def test_given_a_look_that_nobody_waits_for_when_it_finds_who_leads_then_the_next_look_finds_it_too(
    ranks: tuple[InStore, InStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "TELL_SECONDS", 0.2)
    first, second = ranks
    with first.leading("v1", {}, "1") as announce:
        announce("ipc:///rank-0")
        monkeypatch.setattr(rendezvous, "_read", TwoReaders())
        assert second.find("v1") == "ipc:///rank-0"


def test_given_two_looks_at_once_when_a_rank_takes_back_that_it_does_not_come_then_both_see_that(
    ranks: tuple[InStore, InStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ranks
    second.tell_absence("v1", "it is ill")
    second.tell_absence("v1", "")
    monkeypatch.setattr(rendezvous, "_read", TwoReaders())
    with ThreadPoolExecutor(2) as threads:
        looks = [threads.submit(first.absent, "v1") for _ in range(2)]
        assert [look.result(DEADLINE) for look in looks] == [{}, {}]


def test_given_a_rank_that_is_called_when_rank_0_leads_then_it_looks_at_once(
    ranks: tuple[InStore, InStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "SWIFT_SECONDS", DEADLINE)
    monkeypatch.setattr(rendezvous, "SLOW_SECONDS", DEADLINE)
    first, second = ranks
    looked, led = threading.Event(), threading.Event()

    def wait(outcome: Future[Any], timeout: float, recheck: Recheck) -> None:
        looked.set()
        assert led.wait(DEADLINE)
        recheck.look()
        wait_only(outcome, DEADLINE / 2, recheck)

    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(second.find, "v1", (), wait)
        assert looked.wait(DEADLINE)
        with first.leading("v1", {}, "1") as announce:
            announce("ipc:///rank-0")
            led.set()
            assert found.result(DEADLINE) == "ipc:///rank-0"


def test_given_a_version_that_was_brought_when_rank_0_leads_the_next_one_then_nobody_finds_the_first(
    ranks: tuple[InStore, InStore],
) -> None:
    first, second = ranks
    for version in ("v1", "v2"):
        with first.leading(version, {}, version) as announce:
            announce(f"ipc:///{version}")
            assert second.find(version) == f"ipc:///{version}"
    with first.leading("v1", {}, "again") as announce, ThreadPoolExecutor(1) as threads:
        found = threads.submit(second.find, "v1")
        announce("ipc:///again")
        assert found.result(DEADLINE) == "ipc:///again"


def test_given_an_update_that_a_rank_was_called_to_when_it_looks_for_the_next_then_no_older_one_is_found(
    ranks: tuple[InStore, InStore],
) -> None:
    """Given that rank 0 has said nothing in the store of the update before."""
    (first, second), tokens = ranks, LeadTokens()
    with first.leading("v1", {}, tokens.next()) as announce:
        announce("ipc:///v1")
    with first.leading("v2", {}, second_token := tokens.next()):
        second.was_called("v2", second_token)
    with first.leading("v3", {}, tokens.next()) as announce, ThreadPoolExecutor(1) as threads:
        found = threads.submit(second.find, "v3")
        announce("ipc:///v3")
        assert found.result(DEADLINE) == "ipc:///v3"


def test_given_tokens_of_one_rank_0_then_which_came_first_is_known_and_of_two_nothing_is() -> None:
    tokens, others = LeadTokens(), LeadTokens()
    made = [tokens.next() for _ in range(12)]
    assert [is_past(token, made[9]) for token in made] == [True] * 10 + [False] * 2
    assert not is_past(others.next(), made[9])
    assert not is_past(made[0], "")
