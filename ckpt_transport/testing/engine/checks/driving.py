"""Is an engine that is driven from outside left as people want it?"""

from __future__ import annotations

from ckpt_transport.testing.engine.check import check
from ckpt_transport.testing.engine.trial import NotApplicableError, Trial
from ckpt_transport.testing.engine.under_test import FleetUnderTest
from ckpt_transport.testing.side_channel import Broken


def _fleet(trial: Trial) -> FleetUnderTest:
    if not isinstance(trial.engine, FleetUnderTest):
        raise NotApplicableError("this engine is not driven from outside")
    return trial.engine


@check("An engine that has names for what it serves is told the new version's.", "DrivenEngine.label")
def check_names_the_version(trial: Trial) -> None:
    engine = _fleet(trial)
    trial.update(2)
    (named,) = engine.fleet.versions()
    if named not in ("", "v2"):
        raise Broken(f"the engine serves v2 and says '{named}'")


@check("An engine is held for an update, and serves when that is over, whether it failed or not.", "DrivenEngine.pause")
def check_pauses_and_resumes(trial: Trial) -> None:
    engine, paused = _fleet(trial), []
    trial.update(2, moving=lambda: paused.append(engine.driven.is_paused()))
    if paused != [True]:
        raise Broken("the engine is not paused while bytes are written")
    trial.stop_update(1, "in_place", "ready")
    if engine.driven.is_paused():
        raise Broken("the engine is left paused by an update that failed before anything was written")
    trial.expect(2, "after an update that failed")


@check("A pause that people have asked for outlasts an update, which says so.", "DrivenEngine.is_paused")
def check_keeps_the_pause_of_others(trial: Trial) -> None:
    engine = _fleet(trial)
    engine.driven.pause(engine.driven.pause_modes[0], trial.patience.must)
    trial.update(2)
    if not engine.driven.is_paused():
        raise Broken("an update has ended a pause that it had not begun")
    if not engine.last.problems:
        raise Broken("the engine is left paused, and the report of the update says nothing of it")
    engine.driven.resume()
    trial.expect(2, "after the pause")
