"""A host is told to people by the name of its machine, where that tells the hosts of an update apart."""

from __future__ import annotations

import re
from collections import Counter

from ckpt_transport.planning.values.topology import Topology

_MARKS = re.compile(r"(/[0-9a-f]{8})?(/shm\d+)?/uid\d+\Z")
"""Of another boot, another ``/dev/shm`` and another user, as participants put them behind the name of their machine."""


def for_people(text: str, topology: Topology) -> str:
    """The text with the names of hosts of ``topology`` as people know them."""
    machines = {host: _MARKS.sub("", host) for host in {each.host for each in topology.participants}}
    times = Counter(machines.values())
    for host in sorted(machines, key=len, reverse=True):
        if times[machines[host]] == 1:
            text = text.replace(host, machines[host])
    return text
