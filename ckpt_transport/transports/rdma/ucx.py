"""Which RDMA devices UCX uses by itself, as far as its environment tells.

Source: UCX documentation, FAQ, "Which transports does UCX use?" and "Which network devices does UCX use?".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ckpt_transport.transports.rdma.devices import SYS, RdmaDevice, rdma_devices

ALL = "all"
OVER_RDMA = frozenset({ALL, "ib", "rc", "rc_v", "rc_x", "rc_verbs", "rc_mlx5", "dc", "dc_x", "dc_mlx5"})


def ucx_devices(sys: Path = SYS, environment: Mapping[str, str] = os.environ) -> tuple[RdmaDevice, ...]:
    """Those that ``UCX_TLS`` and ``UCX_NET_DEVICES`` allow. None when one of them says what not to use (``^``)."""
    if OVER_RDMA.isdisjoint(environment.get("UCX_TLS", ALL).split(",")):
        return ()
    named = {entry.partition(":")[0] for entry in environment.get("UCX_NET_DEVICES", ALL).split(",")}
    return tuple(device for device in rdma_devices(sys) if not named.isdisjoint({ALL, device.name}))
