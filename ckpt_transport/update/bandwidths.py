"""Each member says what its transports can count on between hosts, and the slowest counts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import msgspec

from ckpt_transport.config import Config
from ckpt_transport.transports import registry
from ckpt_transport.transports.interface import Traits
from ckpt_transport.update import messages as m

logger = logging.getLogger(__name__)


def bandwidths(names: Iterable[str], config: Config) -> dict[str, float]:
    """Ask each of these transports what it expects here; where that fails, log it and take what its traits say."""
    found = {}
    for name in names:
        try:
            found[name] = registry.make(name, config.transports).expected_bandwidth()
        except Exception as error:
            found[name] = registry.load(name).traits.bandwidth
            logger.warning("transport %s counts as it does without devices, because asking it failed: %s", name, error)
    return found


def between_hosts(name: str, traits: Traits, joins: Sequence[m.Join]) -> Traits:
    """Put the bandwidth that all members expect into the traits of a transport; within a host leave them alone."""
    told = [expected for join in joins if (expected := join.bandwidths.get(name, 0.0)) > 0]
    if not told or len({join.host for join in joins}) == 1:
        return traits
    return msgspec.structs.replace(traits, bandwidth=min(told))
