"""A fleet is a set of running engines that are driven from outside, each through a control interface of its own.

An adapter gives a :class:`DrivenEngine` for one engine, a :class:`Driver` that finds its sinks, and an
:class:`EngineFleet` of them, whose maker it registers under the entry point group ``ckpt_transport.engines``; the
commands find it there by the name of the engine.
"""

from ckpt_transport.service.fleet.driven_engine import DrivenEngine
from ckpt_transport.service.fleet.driver import NO_PAUSE, Driver
from ckpt_transport.service.fleet.engine_fleet import EngineFleet
from ckpt_transport.service.fleet.http_engine import HttpEngine, NoRouteError
from ckpt_transport.service.fleet.interface import (
    Fleet,
    FleetReport,
    MakeFleet,
    Publishes,
    RollsBack,
    StagesVersions,
    Updates,
    make_fleet,
)

__all__ = [
    "NO_PAUSE",
    "DrivenEngine",
    "Driver",
    "EngineFleet",
    "Fleet",
    "FleetReport",
    "HttpEngine",
    "MakeFleet",
    "NoRouteError",
    "Publishes",
    "RollsBack",
    "StagesVersions",
    "Updates",
    "make_fleet",
]
