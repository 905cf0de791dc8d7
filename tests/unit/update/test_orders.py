"""What a coordinator says to whom: nothing that a member knows, and nothing that has no answer to wait for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from tempfile import TemporaryDirectory

import pytest

from ckpt_transport import Config, ParameterServer, Sink
from ckpt_transport.update import messages as m
from ckpt_transport.update.membership import Membership
from ckpt_transport_torch.engine import TorchEngine
from tests.fleet import model, weights
from tests.patience import DEADLINE, PATIENT

LAYERS, WIDTH = 2, 8
FIRST = ["Invite", "Invite", "Propose", "Open", "Connect", "Stand", "Run", "Commit"]
LATER = ["Invite", "Propose", "Stand", "Run", "Commit"]
ALONE = ["Invite", "Propose", "StandAndRun", "Commit"]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The orders that went to each address."""
    found: dict[str, list[str]] = {}
    addressed = Membership.addressed

    def heard(members: Membership, address: str, message: m.FromCoordinator) -> m.FromCoordinator:
        found.setdefault(address, []).append(type(message).__name__)
        return addressed(members, address, message)

    monkeypatch.setattr(Membership, "addressed", heard)
    return found


@pytest.fixture
def source() -> Iterator[ParameterServer]:
    with ParameterServer(Config.load(**PATIENT, commit="in_place", transport="shm")) as server:
        for number in (1, 2, 3):
            server.register(f"v{number}", tensors=weights(number, layers=LAYERS, width=WIDTH))
        yield server


def sinks(stack: ExitStack, *groups: str) -> list[Sink]:
    """Running ones, each a rank of the engine of that name."""
    made = [
        Sink(TorchEngine(model(0, layers=LAYERS, width=WIDTH), group), version="v0", config=Config.load(**PATIENT))
        for group in groups
    ]
    for each in made:
        stack.callback(each.close)
        each.start()
    return made


def test_given_a_second_update_then_who_was_in_the_first_is_neither_challenged_nor_told_to_open_or_connect_its_routes(
    source: ParameterServer, said: dict[str, list[str]]
) -> None:
    with ExitStack() as stack:
        one, other = sinks(stack, "", "")
        addresses = [one.address, other.address]
        source.update("v1", addresses)
        assert said == dict.fromkeys(addresses, FIRST)
        said.clear()
        source.update("v2", addresses)
        assert said == dict.fromkeys(addresses, LATER)
        assert (one.version, other.version) == ("v2", "v2")


def test_given_one_sink_then_it_stands_still_and_takes_the_version_at_one_word_and_the_time_to_stand_still_is_known(
    source: ParameterServer, said: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a forward pass that takes a while to end."""
    advance = TorchEngine.advance

    def late(engine: TorchEngine, forwards: int, timeout: float) -> None:
        threading.Event().wait(0.2)
        advance(engine, forwards, timeout)

    with ExitStack() as stack:
        (one,) = sinks(stack, "")
        source.update("v1", [one.address])
        said.clear()
        monkeypatch.setattr(TorchEngine, "advance", late)
        report = source.update("v2", [one.address])
        assert said == {one.address: ALONE}
        assert one.version == "v2"
        assert report is not None
        assert report.phases["hold"] > 0.19


def test_given_one_that_is_new_then_it_is_challenged_and_all_who_share_its_routes_open_them(
    source: ParameterServer, said: dict[str, list[str]]
) -> None:
    with ExitStack() as stack:
        one, other = sinks(stack, "", "")
        source.update("v1", [one.address])
        said.clear()
        source.update("v2", [one.address, other.address])
        assert said == {one.address: FIRST[1:], other.address: FIRST}
        assert (one.version, other.version) == ("v2", "v2")


def test_given_ranks_of_one_engine_then_they_stop_before_the_same_pass_and_others_just_stand_still(
    source: ParameterServer, said: dict[str, list[str]]
) -> None:
    with ExitStack() as stack:
        together, alone = sinks(stack, "engine", "engine"), sinks(stack, "")[0]
        source.update("v1", [*(each.address for each in together), alone.address])
        for each in together:
            assert said[each.address][5:] == ["Hold", "Advance", "Run", "Commit"]
        assert said[alone.address][5:] == ["Stand", "Run", "Commit"]


@pytest.fixture
def ranks() -> Iterator[tuple[ParameterServer, ParameterServer]]:
    """Two source ranks, here in one process, each with half of two versions that lie side by side."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        settings = {**PATIENT, "transport": "shm", "pool": "shared", "coordinator": f"ipc://{folder}/rank-0"}
        made = [
            stack.enter_context(ParameterServer(Config.load(**settings, commit="in_place"), rank=rank, world_size=2))
            for rank in (0, 1)
        ]
        for number in (1, 2):
            tensors = weights(number, layers=LAYERS, width=WIDTH)
            for rank, server in enumerate(made):
                own = {name: tensor for n, (name, tensor) in enumerate(tensors.items()) if n % 2 == rank}
                server.register(f"v{number}", tensors=own)
        yield made[0], made[1]


def update_by_both(ranks: tuple[ParameterServer, ParameterServer], version: str, sinks: list[Sink]) -> None:
    with ThreadPoolExecutor(1) as beside:
        followed = beside.submit(ranks[1].update, version)
        ranks[0].update(version, [each.address for each in sinks])
        followed.result(DEADLINE)
    assert [each.version for each in sinks] == [version] * len(sinks)


def test_given_two_sources_that_lend_what_they_have_lent_then_nobody_is_told_to_connect(
    ranks: tuple[ParameterServer, ParameterServer], said: dict[str, list[str]]
) -> None:
    with ExitStack() as stack:
        one, other = sinks(stack, "", "")
        update_by_both(ranks, "v1", [one, other])
        assert said[one.address] == said[other.address] == FIRST
        said.clear()
        update_by_both(ranks, "v1", [one, other])
        assert said.pop(one.address) == said.pop(other.address) == LATER
        assert list(said.values()) == [["Propose", "Run", "Commit"]]


def test_given_two_sources_that_lend_other_memory_then_all_are_told_and_get_what_is_there(
    ranks: tuple[ParameterServer, ParameterServer], said: dict[str, list[str]]
) -> None:
    with ExitStack() as stack:
        one, other = sinks(stack, "", "")
        for version in ("v1", "v2", "v1", "v1"):
            said.clear()
            update_by_both(ranks, version, [one, other])
            if version == "v2":
                assert said[one.address] == said[other.address] == ["Invite", "Propose", "Connect", *LATER[2:]]
        assert said[one.address] == LATER


def test_given_a_sink_that_comes_back_to_two_sources_then_all_open_their_routes_again(
    ranks: tuple[ParameterServer, ParameterServer], said: dict[str, list[str]]
) -> None:
    with ExitStack() as stack:
        one, other = sinks(stack, "", "")
        update_by_both(ranks, "v1", [one, other])
        other.close()
        (third,) = sinks(stack, "")
        said.clear()
        update_by_both(ranks, "v1", [one, third])
        assert said[one.address] == FIRST[1:]
        assert said[third.address] == FIRST
