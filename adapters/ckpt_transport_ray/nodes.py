"""Addresses at which other nodes of a Ray cluster reach this one."""

from __future__ import annotations

import ray

from ckpt_transport.spi import any_port


def node_address() -> str:
    """Any free TCP port at the address by which Ray knows this node; call it in the actor that is to listen.

    It is for a sink's ``address``, and for the ``coordinator`` of source rank 0. TCP wants a shared secret
    (``secret_file``).
    """
    return any_port(ray.util.get_node_ip_address())
