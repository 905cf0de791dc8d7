"""Whether deltas are looked for is decided by what updates have taken."""

from __future__ import annotations

from ckpt_transport.planning import Manifest, Plan, Stages, Topology
from ckpt_transport.service.delta_costs import RESTS, Cost, DeltaCosts
from ckpt_transport.update.report import DeltaSummary, Report


def report(**phases: float) -> Report:
    plan = Plan(Manifest("v", (), ()), Topology((), ()), (), (), (), Stages(), (), (), ())
    return Report("v", plan, phases, {}, (), {})


def test_given_a_delta_that_is_sooner_than_everything_then_the_next_one_is_looked_for() -> None:
    costs = DeltaCosts()
    costs.sent_everything(report(agree=9.0, run=1.0, apply=0.5))
    costs.sent_delta(report(plan=0.1, run=0.2, apply=0.1), found=0.3)
    assert costs.why_everything() == ""


def test_given_a_delta_that_took_longer_than_everything_then_it_is_looked_at_again_some_updates_later() -> None:
    costs = DeltaCosts()
    costs.sent_everything(report(run=1.0))
    costs.judge(Cost(found=0.9, sent=0.2))
    whys = [costs.why_everything() for _ in range(RESTS + 1)]
    assert whys[0] == (
        "everything was sooner: 1 s, and the last delta took 1.1 s, of them 0.9 s to find it; "
        "deltas are looked at again later"
    )
    assert whys[RESTS - 1].endswith("in the next update")
    assert whys[RESTS] == ""


def test_given_too_many_changes_then_everything_is_sent_for_a_while() -> None:
    costs = DeltaCosts()
    costs.too_dense("too much has changed")
    assert costs.why_everything().startswith("too much has changed; ")


def test_given_what_was_sent_then_the_report_says_it_in_words_and_numbers() -> None:
    sent = DeltaSummary("step-1", "", 1000, 22, 500, 5, 0.25)
    assert str(sent) == (
        "the difference to 'step-1' was sent: 1.00% of the elements in 2.20% of the bytes, found in 0.250 s"
    )
    assert sent.to_dict()["changed"] == 5
    assert str(DeltaSummary("", "too much has changed", 1000, 1000)) == "everything was sent: too much has changed"
