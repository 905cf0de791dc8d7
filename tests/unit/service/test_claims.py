"""A program that gives an engine up says so, whatever comes between."""

from __future__ import annotations

from contextlib import suppress

import torch

from ckpt_transport import Config
from ckpt_transport.service.claims import Claims
from ckpt_transport_torch import attach
from tests.patience import PATIENT
from tests.support.interrupting import Interrupter


def test_given_a_release_that_is_interrupted_at_any_step_of_the_mailbox_then_another_program_gets_the_engine() -> None:
    """The first one lives on, at a UNIX socket that it touches for another sink, too."""
    config = Config.load(**PATIENT)
    one, another = Claims(config), Claims(config)
    interrupter = Interrupter("/control/")
    with (
        attach(torch.nn.Linear(2, 2), version="v1", config=config) as sink,
        attach(torch.nn.Linear(2, 2), version="v1", config=config) as kept,
    ):
        one.take({"kept": kept.address}, "one")
        interrupter.run(one.take({"engine": sink.address}, "one")["engine"].release, 0)
        steps = interrupter.steps
        for at in range(1, steps + 1):
            claim = one.take({"engine": sink.address}, "one")["engine"]
            with suppress(KeyboardInterrupt):  # a call may make fewer steps than the one that was counted
                interrupter.run(claim.release, at)
            another.take({"engine": sink.address}, "another")["engine"].release()
        one.close()
        another.close()
