"""The dashboard shows a fleet in a browser: who serves what, the update that runs, and those that have ended.

It asks members about now, and reads a history about before. Needs ``ckpt-transport[dashboard]``.
"""

from __future__ import annotations

from ckpt_transport.dashboard.app import make_app
from ckpt_transport.dashboard.fleet_watch import FleetWatch
from ckpt_transport.dashboard.rollback import Rollback, read_token
from ckpt_transport.dashboard.server import PageServer

__all__ = ["FleetWatch", "PageServer", "Rollback", "make_app", "read_token"]
