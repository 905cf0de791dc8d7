"""Names of hosts say whose memory can be read, and which of them are one machine."""

from __future__ import annotations

import pytest

from ckpt_transport import Config
from ckpt_transport.update.host import host_name, host_of, machine_of


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("node/b00710ad/shm24/uid0", "node/b00710ad/shm24/uid1000", True),
        ("node/b00710ad/shm24/uid0", "node/b00710ad/shm31/uid0", True),
        ("node/b00710ad/uid0", "node/b00710ad/shm31/uid0", True),
        ("node/b00710ad/shm24/uid0", "node/cafecafe/shm24/uid0", False),
        ("node/b00710ad/shm24/uid0", "edon/b00710ad/shm24/uid0", False),
        ("rack1/row2/node3", "rack1/row2/node4", False),
        ("rack1/row2/node3", "rack1/row2/node3", True),
        ("rack1/shm2/node3", "rack1/shm2/node4", False),
    ],
)
def test_given_two_names_of_hosts_then_they_are_one_machine_where_only_memory_and_user_differ(
    one: str, other: str, same: bool
) -> None:
    """Names from settings are whatever people like; each is a machine of its own."""
    assert (machine_of(one) == machine_of(other)) is same


def test_given_this_host_then_its_name_without_memory_and_user_is_the_machine() -> None:
    assert host_name().startswith(machine_of(host_name()))
    assert "/uid" not in machine_of(host_name())
    assert "/shm" not in machine_of(host_name())


def test_given_a_name_in_settings_then_it_is_the_host_as_it_is() -> None:
    assert host_of(Config(host="rack1/row2/node3")) == "rack1/row2/node3"
    assert host_of(Config()) == host_name()
