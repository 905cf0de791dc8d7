"""Names of hosts as people read them."""

from __future__ import annotations

import pytest

from ckpt_transport.planning import for_people
from tests.unit.worlds import topology

MACHINE = "node-7/44d981ed/shm27/uid0"


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ("node-8/00c0ffee/shm27/uid0", "memory of node-7 is busy"),
        ("node-7/44d981ed/shm31/uid0", f"memory of {MACHINE} is busy"),
        ("rack/node-7", "memory of node-7 is busy"),
    ],
    ids=["another-machine", "another-container", "from-settings"],
)
def test_given_hosts_then_one_is_called_like_its_machine_unless_another_is_too(others: str, told: str) -> None:
    assert for_people(f"memory of {MACHINE} is busy", topology([MACHINE], [others])) == told
