"""Lets the members of a route agree on RDMA or TCP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from ckpt_transport import RegistrationError


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """What one member says first.

    Attributes:
        protocol: its setting.
        devices: the RDMA devices it would use.
    """

    protocol: Literal["auto", "rdma", "tcp"]
    devices: tuple[str, ...] = ()


def agree(offers: Mapping[int, Offer]) -> Literal["rdma", "tcp"]:
    """The protocol of a route; every member comes to the same. RDMA where all can, unless somebody demands TCP.

    Raises:
        RegistrationError: demands contradict each other, or RDMA is demanded and a member has no device for it.
    """
    demand = {offer.protocol: rank for rank, offer in offers.items() if offer.protocol != "auto"}
    if len(demand) > 1:
        raise RegistrationError(
            f"rank {demand['rdma']} is set to 'rdma' and rank {demand['tcp']} to 'tcp'; "
            "set 'protocol' of transport 'mooncake' alike, or to 'auto'"
        )
    unable = [rank for rank, offer in offers.items() if not offer.devices]
    if "rdma" in demand and unable:
        raise RegistrationError(
            f"'rdma' is demanded by rank {demand['rdma']}, and ranks {unable} have no RDMA device that is up and that "
            "their settings allow; look at /sys/class/infiniband, 'devices' of transport 'mooncake' and NCCL_IB_HCA, "
            "or set 'protocol' to 'tcp'"
        )
    return "tcp" if "tcp" in demand or unable else "rdma"
