"""All links of this host are measured, one after the other, so that none slows another down."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from ckpt_transport.rates import hand_overs, host_memory, loopback
from ckpt_transport.rates.devices import between, device_links
from ckpt_transport.rates.network import network_rate
from ckpt_transport.rates.values import HostLink, HostRates, LinkKind, LinkRate

logger = logging.getLogger(__name__)

Told = Callable[[HostLink, int, int], None]
"""Told which link is measured next, how many have been, and how many there are."""


def measure(told: Told) -> HostRates:
    """Measure the links of this host: tens of milliseconds for each. Starts CUDA where there are GPUs.

    A link that cannot be measured is logged and left out. What a bucket costs this host is measured last.
    """
    probes: dict[HostLink, Callable[[], float]] = {
        HostLink(LinkKind.MEMORY): host_memory.by_all_cores,
        HostLink(LinkKind.CORE): host_memory.by_one_core,
        HostLink(LinkKind.LOOPBACK): loopback.one_connection,
        HostLink(LinkKind.NETWORK): network_rate,
        **{link: partial(between, ends) for link, ends in device_links()},
    }
    found = []
    for number, (link, probe) in enumerate(probes.items()):
        told(link, number, len(probes))
        try:
            rate = probe()
        except (OSError, RuntimeError) as error:
            logger.warning("the rate of %s cannot be measured: %s", link.kind, error)
            continue
        if rate > 0:
            found.append(LinkRate(link, rate))
    try:
        bucket_seconds = hand_overs.per_bucket()
    except OSError as error:
        logger.warning("what a bucket costs cannot be measured: %s", error)
        bucket_seconds = 0.0
    return HostRates(tuple(found), bucket_seconds)
