"""What a driver says of an engine whose requests are held, and by whom."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import torch

from ckpt_transport import Config
from ckpt_transport.service.claims import Claims
from ckpt_transport.service.fleet.driven_engine import DrivenEngine
from ckpt_transport.service.fleet.driver import Driver
from ckpt_transport_torch import attach
from tests.patience import PATIENT


class Held(DrivenEngine):
    """An engine in this process that knows who holds its requests."""

    name = "held"
    tells_pauses_apart = True

    def __init__(self) -> None:
        self.requests = Lock()

    def wait(self, timeout: float) -> None:
        """It serves."""

    def world_size(self) -> int:
        return 1

    def is_paused(self) -> bool:
        return self.requests.locked()

    def pause(self, mode: str, timeout: float) -> None:
        self.paused_by_others = not self.requests.acquire(blocking=False)

    def resume(self) -> None:
        if not self.paused_by_others:
            self.requests.release()

    def reset_caches(self) -> None:
        """It has none."""


class HeldDriver(Driver[Held]):
    """Finds no sink: it is given one."""

    def _find_sinks(self) -> Sequence[str]:
        return self.sinks

    def warm_up(self) -> None:
        """There is nothing to prepare."""


def test_given_a_mix_when_others_had_paused_the_engine_beside_the_update_then_it_says_who_keeps_it_paused() -> None:
    """Given nobody else, then the pause is said to last until an update succeeds."""
    config = Config.load(**PATIENT)
    claims = Claims(config)
    try:
        with attach(torch.nn.Linear(2, 2), version="v1", config=config) as sink:
            for others, told in ((True, "others have paused it: leave it paused"), (False, "is left paused until an")):
                engine = Held()
                driver = HeldDriver(engine, config, "none")
                driver.take(claims.take({"engine": sink.address}, "an update")["engine"])
                driver.pause()
                if others:
                    engine.requests.acquire()
                assert told in driver.give_up(tainted=True)
                assert engine.is_paused()
                driver.end()
    finally:
        claims.close()
