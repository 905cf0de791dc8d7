"""What is served after an update that fails, and after one that is taken back?"""

from __future__ import annotations

from contextlib import suppress

from ckpt_transport.errors import UpdateAbortedError, UpdateError
from ckpt_transport.testing.engine.check import check
from ckpt_transport.testing.engine.trial import MISFIT, NotApplicableError, Trial
from ckpt_transport.testing.side_channel import Broken

SHORT = 2.0
"""Seconds of an update that is not to succeed."""


@check("A version that does not fit is refused before anything is written.", "Engine.check")
def check_refuses_misfits(trial: Trial) -> None:
    try:
        trial.engine.update(trial.server("in_place"), MISFIT)
    except UpdateAbortedError:
        pass
    else:
        raise Broken("a version that does not fit is taken in")
    _serves_the_old_one(trial, "after a version was refused")
    trial.update(2)
    trial.expect(2, "after the update that fits")


@check("When an update fails before anything is written, the engine serves the old version as before.", "Engine.resume")
def check_goes_back(trial: Trial) -> None:
    trial.stop_update(2, "in_place", "ready")
    _serves_the_old_one(trial, "after an update that failed before requests were held")
    with suppress(NotApplicableError):
        _fail_while_held(trial)
    trial.update(2)
    trial.expect(2, "after the next update")


@check(
    "When an update fails while it writes over what is served, no request is answered until one succeeds.",
    "Engine.taint",
)
def check_refuses_a_mix(trial: Trial) -> None:
    trial.stop_update(2, "in_place", "moving")
    trial.wait_until_tainted()
    asked = trial.ask()
    if asked.ended.wait(trial.patience.must_not) and asked.error is None:
        raise Broken(f"a request is {asked.in_words} from weights that are a mix")
    trial.update(2)
    trial.expect(2, "after the update that makes good the one that failed")
    if asked.error is None:
        trial.compare(asked.result(trial.patience.must, "a request that was held"), 2, "that was held")


@check(
    "When a staged update fails before its commit, the engine has served the old version all the time.", "Engine.stage"
)
def check_keeps_the_old_version(trial: Trial) -> None:
    trial.needs_staging()
    for moment in ("moving", "ready"):
        trial.stop_update(2, "auto", moment)
        _serves_the_old_one(trial, f"after a staged update that failed when it was {moment}")
    trial.update(2, "auto")
    trial.expect(2, "after the next update")


@check("A rollback serves the version before again, exactly.", "Engine.restore")
def check_rolls_back(trial: Trial) -> None:
    trial.needs_staging()
    trial.update(2, "auto")
    trial.rollback()
    _serves_the_old_one(trial, "after the rollback")
    trial.update(2, "auto")
    trial.expect(2, "after the update that follows a rollback")


def _fail_while_held(trial: Trial) -> None:
    """An update gives up waiting for a forward pass that does not end."""
    with trial.running() as running, suppress(UpdateError):
        trial.engine.update(trial.server("in_place", update_timeout=SHORT), "v2")
        raise Broken("an update has not waited for a forward pass that was running")
    trial.compare(running.result(trial.patience.must, "a request that was running"), 1, "that was running")
    _serves_the_old_one(trial, "after an update that failed while requests were held")


def _serves_the_old_one(trial: Trial, when: str) -> None:
    if tainted := trial.tainted():
        raise Broken(f"{when}: a sink must not serve: {tainted[0]}")
    if trial.versions() != {"v1"}:
        raise Broken(f"{when}: sinks say that they serve {trial.versions()}, and not v1")
    trial.expect(1, when)
