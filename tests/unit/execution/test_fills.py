"""Slots are filled ahead: by threads whose end is waited for, and by a device that goes on by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ckpt_transport.execution import FillMemory, Fills, Ledger, RankSchedule, fills
from ckpt_transport.execution.schedule import RankStep
from ckpt_transport.execution.timeline import now
from ckpt_transport.memory import Fence, MemoryKind
from ckpt_transport.planning import RingUse, StageKind
from tests.unit.devices import PATIENCE, Stream
from tests.unit.worlds import filled

SLOTS = 2
"""Of a ring."""


class Slow:
    """Memory that fills slots when it is told to."""

    kind = MemoryKind.SCATTERED

    def __init__(self) -> None:
        self.told = threading.Event()
        self.filled: list[int] = []

    def fill(self, slot: torch.Tensor, offset: int) -> None:
        assert self.told.wait(PATIENCE)
        self.filled.append(offset)


class Enqueued(Fills):
    """Fills that a device does, one after the other; here a thread is the device."""

    device = Stream()

    def _is_short(self, bucket: object) -> bool:
        return True

    def _fill(self, step: RankStep, free: object) -> tuple[float, Fence | None]:
        return now(), self.device.put(lambda: self._fill_slot(torch.empty(0), step.bucket))


@contextmanager
def filling(kind: type[Fills], memory: Slow, tensors: int = 5) -> Iterator[Fills]:
    """Fills of a source that sends so many tensors through two slots: five are nine buckets, and one is one."""
    plan = filled(ring_depth=SLOTS, tensors=tensors).plan()
    ring = plan.ring(0, RingUse.FILL)
    assert ring is not None
    slots = torch.empty(ring.nbytes, dtype=torch.uint8)
    schedule = RankSchedule(plan, 0)
    unordered: Any = SimpleNamespace(endpoint=SimpleNamespace(stream=None))
    extents: Any = {0: memory}
    routes = dict.fromkeys(schedule.routes, unordered)
    with kind(Ledger(schedule), routes, FillMemory(extents, slots), lambda: None) as found:
        try:
            yield found
        finally:
            memory.told.set()


def ended(found: Fills) -> int:
    """How many fills have ended."""
    return sum(event.kind is StageKind.FILL for event in found.ledger.events)


@pytest.fixture
def by_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fill is so short that it is done in passing."""
    monkeypatch.setattr(fills, "HANDED_OVER_BYTES", 0)


@pytest.mark.usefixtures("by_thread")
def test_given_slots_that_a_thread_fills_when_requests_will_be_held_then_both_are_full_first() -> None:
    memory = Slow()
    with filling(Fills, memory) as found:
        found.run_ahead(lambda: None, lambda seconds: memory.told.set())
        assert len(memory.filled) == ended(found) == SLOTS


def test_given_more_than_slots_when_a_device_fills_them_then_nobody_waits_for_it() -> None:
    """Or it would do nothing from then on until a slot is free."""
    memory = Slow()
    with filling(Enqueued, memory) as found:
        found.run_ahead(lambda: None, lambda seconds: pytest.fail("it waits"))
        assert not memory.filled
        assert ended(found) == 0


def test_given_slots_for_all_when_a_device_fills_them_then_all_are_full_before_requests_are_held() -> None:
    memory = Slow()
    with filling(Enqueued, memory, tensors=1) as found:
        found.run_ahead(lambda: None, lambda seconds: memory.told.set())
        assert len(memory.filled) == ended(found) == 1


@pytest.mark.usefixtures("by_thread")
def test_given_requests_that_run_on_when_filling_is_begun_then_nobody_waits_for_it() -> None:
    memory = Slow()
    with filling(Fills, memory) as found:
        assert found.advance()
        assert ended(found) == 0
