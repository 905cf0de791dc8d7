"""Many sinks are led by couriers; whoever fails is named, courier or not, and all the others go on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt_transport import Config, ParameterServer
from ckpt_transport.control import Mailbox, couriers
from ckpt_transport.control.messages import Dispatch, Message
from ckpt_transport.errors import UpdateAbortedError
from tests.fleet import SinkSpec, fleet, weights
from tests.injection import Fault
from tests.patience import SWIFT

COURIER, BEHIND = 0, 1
SINKS = 4
FIRST, OVER, UNDER, LAST = 0, 2, 4, 5
"""Of six sinks: two couriers that the coordinator talks to, of which the second is also one for a third, and who is
behind that one."""

pytestmark = pytest.mark.usefixtures("dead_are_swept")


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    """Where sinks listen, in the order in which couriers are chosen."""
    return [f"ipc://{tmp_path}/{number}" for number in range(SINKS)]


def specs(places: list[str]) -> list[SinkSpec]:
    return [SinkSpec(settings=SWIFT, address=place) for place in places]


@pytest.fixture
def more_places(tmp_path: Path) -> list[str]:
    """Where so many sinks listen that there is a courier of couriers."""
    return [f"ipc://{tmp_path}/{number}" for number in range(LAST + 1)]


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four sinks have two couriers, and six have three, of which one is also the courier of another."""
    monkeypatch.setattr(couriers, "FAN_OUT", 2)


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """To whom the source has sent something for others."""
    found: list[str] = []
    send = Mailbox.send

    def seen(mailbox: Mailbox, address: str, message: Message) -> None:
        if isinstance(message, Dispatch):
            found.append(address)
        send(mailbox, address, message)

    monkeypatch.setattr(Mailbox, "send", seen)
    return found


@pytest.fixture
def server() -> Iterator[ParameterServer]:
    with ParameterServer(Config.load(transport="shm", commit="staged", **SWIFT)) as server:
        for seed in (2, 3, 4, 5):
            server.register(f"v{seed}", tensors=weights(seed))
        yield server


def test_given_many_sinks_then_their_couriers_are_talked_to_and_all_get_every_version(
    dispatched: list[str], server: ParameterServer, places: list[str]
) -> None:
    with fleet(*specs(places)) as sinks:
        addresses = [sink.address for sink in sinks]
        for seed in (2, 3, 4):
            dispatched.clear()
            server.update(f"v{seed}", addresses)
            assert {*dispatched} == {addresses[0], addresses[2]}
            for sink in sinks:
                assert sink.state().holds(weights(seed))
        assert len(dispatched) >= 2 * 4, "each order, and what the route says"


@pytest.mark.parametrize("victim", [COURIER, BEHIND], ids=["courier", "one behind it"])
@pytest.mark.parametrize(
    "fault",
    [Fault("propose", 3), Fault("run", 3), Fault("hold", 3), Fault("run", 3, "stop"), Fault("hold", 3, "raise")],
    ids=lambda fault: f"{fault.where}-{fault.act}",
)
def test_given_a_member_that_fails_then_it_is_named_and_the_others_serve_what_they_did_and_take_the_next_version(
    fault: Fault, victim: int, server: ParameterServer, places: list[str]
) -> None:
    fail_and_go_on(fault, victim, server, places)


@pytest.mark.parametrize("victim", [OVER, UNDER, LAST], ids=["courier of couriers", "courier behind it", "last"])
@pytest.mark.parametrize(
    "fault", [Fault("propose", 3), Fault("run", 3), Fault("hold", 3)], ids=lambda fault: f"{fault.where}-{fault.act}"
)
def test_given_a_member_below_a_courier_of_couriers_that_fails_then_it_is_named_and_the_others_go_on(
    fault: Fault, victim: int, server: ParameterServer, more_places: list[str]
) -> None:
    fail_and_go_on(fault, victim, server, more_places)


def test_given_very_many_sinks_then_couriers_of_couriers_are_talked_to_and_all_get_every_version(
    dispatched: list[str], server: ParameterServer, more_places: list[str]
) -> None:
    with fleet(*specs(more_places)) as sinks:
        addresses = [sink.address for sink in sinks]
        for seed in (2, 3, 4):
            dispatched.clear()
            server.update(f"v{seed}", addresses)
            for sink in sinks:
                assert sink.state().holds(weights(seed))
        assert {*dispatched} == {addresses[FIRST], addresses[OVER]}


def fail_and_go_on(fault: Fault, victim: int, server: ParameterServer, places: list[str]) -> None:
    """Have one of the sinks fail in the third update: it is named, and the others take the next version."""
    members = specs(places)
    members[victim] = replace(members[victim], fault=fault)
    with fleet(*members) as sinks:
        addresses = [sink.address for sink in sinks]
        for seed in (2, 3):
            server.update(f"v{seed}", addresses)
        with pytest.raises(UpdateAbortedError, match=re.escape(addresses[victim])) as failed:
            server.update("v4", addresses)
        others = [sink for number, sink in enumerate(sinks) if number != victim]
        assert not any(other.address in str(failed.value) for other in others)
        for other in others:
            state = other.wait_until(lambda state: not state.served)
            assert (state.version, state.tainted) == ("v3", "")
            assert state.holds(weights(3))
        server.update("v5", [other.address for other in others])
        for other in others:
            assert other.state().holds(weights(5))


def test_given_another_order_of_sinks_then_the_couriers_are_the_same_and_all_get_every_version(
    dispatched: list[str], server: ParameterServer, places: list[str]
) -> None:
    with fleet(*specs(places)) as sinks:
        addresses = [sink.address for sink in sinks]
        for seed, order in ((2, addresses), (3, addresses), (4, addresses[::-1]), (5, addresses[::-1])):
            dispatched.clear()
            server.update(f"v{seed}", order)
            assert {*dispatched} == {addresses[0], addresses[2]}
            for sink in sinks:
                assert sink.state().holds(weights(seed))
