"""An open route keeps nothing of memory whose registration was undone: its owner may free it."""

from __future__ import annotations

import gc
import weakref
from typing import Any, cast

import torch

from ckpt_transport.execution import RouteAttachment
from ckpt_transport.memory import Buffer
from ckpt_transport.testing.loopback import LoopbackEndpoint
from ckpt_transport.transports.interface import Group
from ckpt_transport.update.routes import OpenRoute

NOBODY: Any = None
"""The control channel of a route on which no message is sent."""


def test_given_memory_that_was_lent_when_it_is_kept_no_longer_then_it_can_be_freed() -> None:
    group = Group("alone", (0,), 0, ("host",))
    endpoint = LoopbackEndpoint(group, cast("Any", NOBODY))
    route = OpenRoute(RouteAttachment(endpoint), NOBODY)
    stays, goes = Buffer(torch.zeros(64, dtype=torch.uint8)), Buffer(torch.zeros(64, dtype=torch.uint8))
    route.attachment.lent = [route.region(stays), route.region(goes)]
    memory = weakref.ref(goes.tensor)
    route.keep_only([stays])
    del goes
    gc.collect()
    assert memory() is None
    assert [region.memory for region in route.attachment.lent] == [stays]
