"""What is served after an update, and during one?"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from ckpt_transport.reasons import named_reason
from ckpt_transport.testing.engine.check import check
from ckpt_transport.testing.engine.trial import Call, Trial, remembered
from ckpt_transport.testing.side_channel import Broken

REQUESTERS = 2
"""Threads that make requests one after the other."""


@check("After an update requests are answered by the new version, all of it, and the sinks say so.", "Engine.load")
def check_brings_a_version(trial: Trial) -> None:
    for version in (2, 1, 2):
        trial.update(version)
        trial.expect(version, f"after the update to version {version}")
        if trial.versions() != {f"v{version}"}:
            raise Broken(f"sinks say that they serve {trial.versions()}, and not v{version}")


@check("While bytes are written over what is served, no request is answered.", "Engine.hold")
def check_holds_requests(trial: Trial) -> None:
    def moving() -> None:
        trial.expect_no_answer(trial.ask(), "while bytes are written")

    with remembered() as act:
        trial.update(2, moving=act(moving))


@check("A request that was held is answered by the new version, once all of it is there.", "Engine.resume")
def check_resumes_requests(trial: Trial) -> None:
    held: list[Call[object]] = []
    trial.update(2, moving=lambda: held.append(trial.ask()))
    (asked,) = held
    trial.compare(asked.result(trial.patience.must, "a request that was held"), 2, "that was held")
    trial.expect(2, "after the update")


@check(
    "A forward pass that runs when an update comes ends by the old version, before anything is written.",
    "Engine.advance",
)
def check_waits_for_running(trial: Trial) -> None:
    moving = threading.Event()
    with trial.running() as running:
        updating = Call(lambda: trial.update(2, moving=moving.set))
        early = moving.wait(trial.patience.must_not)
    answer = running.result(trial.patience.must, "a request that was running")
    updating.result(trial.patience.must, "the update")
    if early:
        raise Broken("bytes are written while a forward pass runs")
    trial.compare(answer, 1, "that was running")
    trial.expect(2, "after the update")


@check("While a version is staged, requests are answered by the old one, until it is committed.", "Engine.stage")
def check_stages_beside(trial: Trial) -> None:
    trial.needs_staging()
    with remembered() as act:
        trial.update(
            2,
            "auto",
            moving=act(lambda: trial.expect(1, "while a version is staged")),
            ready=act(lambda: trial.expect(1, "when a version is staged and not committed")),
        )
    trial.expect(2, "after the commit")


@dataclass
class _Traffic:
    """Requests one after the other.

    Attributes:
        brought: the versions that have been served, and the one that is being brought.
        errors: what was wrong with an answer.
    """

    trial: Trial
    brought: list[int]
    errors: list[str]
    over: bool = False

    def go(self) -> None:
        while not self.over:
            began = len(self.brought)
            try:
                answer = self.trial.engine.ask()
            except Exception as error:
                self.errors.append(f"a request is refused: {named_reason(error)}")
                return
            allowed = self.brought[max(began - 2, 0) :]
            if answer not in [self.trial.engine.expected(version) for version in allowed]:
                self.errors.append(f"a request is answered with {answer}, while versions {allowed} are served")


@check("Of requests that come all the time none is refused, and each is answered by one version.", "Gate")
def check_answers_all(trial: Trial) -> None:
    traffic = _Traffic(trial, [1], [])
    calls = [Call(traffic.go) for _ in range(REQUESTERS)]
    for version, commit in ((2, "in_place"), (1, "in_place"), (2, "auto"), (1, "auto")):
        traffic.brought.append(version)
        trial.update(version, commit)
    traffic.over = True
    for call in calls:
        call.result(trial.patience.must, "a request")
    if traffic.errors:
        raise Broken(traffic.errors[0])


@check("What was computed of an earlier request by old weights is not used for a later one.", "Engine.certify")
def check_drops_caches(trial: Trial) -> None:
    for version, commit in ((2, "in_place"), (1, "in_place"), (2, "auto"), (1, "auto")):
        for _ in range(2):
            trial.engine.ask()
        trial.update(version, commit)
        trial.expect(version, f"which was made before the update to version {version}, too,")
