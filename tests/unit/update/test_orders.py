"""What a coordinator says to whom: nothing that a member knows, and nothing that has no answer to wait for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ckpt_transport import Config, ParameterServer, Sink
from ckpt_transport.update import messages as m
from ckpt_transport.update.membership import Membership
from ckpt_transport_torch.engine import TorchEngine
from tests.fleet import model, weights
from tests.patience import PATIENT

LAYERS, WIDTH = 2, 8
FIRST = ["Invite", "Invite", "Propose", "Open", "Connect", "Stand", "Run", "Commit"]
LATER = ["Invite", "Propose", "Stand", "Run", "Commit"]


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
