"""``python -m ckpt_transport.testing``: what it prints and how it ends."""

from __future__ import annotations

import pytest

from ckpt_transport.errors import TransportUnavailableError
from ckpt_transport.testing import CHECKS, LONG_CHECKS, run
from ckpt_transport.testing.__main__ import main
from ckpt_transport.transports.interface import Availability
from tests.conformance.broken import LONG_CASES, Case
from tests.conformance.transports import ReadTransport


class NotHere(ReadTransport):
    """Says that it cannot run."""

    @classmethod
    def probe(cls) -> Availability:
        return Availability(False, "there is no such card", "buy one")


def test_given_a_transport_that_keeps_its_promises_then_the_command_ends_with_0(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["tests.conformance.transports:ReadTransport", "--only", "late_sender"]) == 0
    assert "late_sender" in capsys.readouterr().out


def test_given_a_probe_that_raises_when_another_check_is_asked_for_then_both_are_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Given a transport whose probe raises, when another check is asked for, then both are in the table."""
    assert main(["tests.conformance.broken.probes:ProbeRaises", "--only", "late_sender"]) == 1
    said = capsys.readouterr().out
    assert "fails the check 'probe_is_cheap'" in said
    assert "probe() raised OSError: no such device" in said
    assert "late_sender" in said


def test_given_a_transport_that_cannot_run_here_then_it_is_not_checked() -> None:
    with pytest.raises(TransportUnavailableError, match="no such card"):
        run(NotHere)


def test_given_all_checks_then_long_ones_have_names_of_their_own() -> None:
    names = [check.name for check in (*CHECKS, *LONG_CHECKS)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("case", LONG_CASES, ids=lambda case: case.name)
def test_given_a_defect_past_16_bits_then_a_long_check_catches_it(case: Case) -> None:
    report = run(case.transport, only=case.found_by, checks=LONG_CHECKS)
    assert set(report.failed) == set(case.found_by), str(report)
    for result in report.results:
        assert case.found_by[result.check.name] in result.explanation
