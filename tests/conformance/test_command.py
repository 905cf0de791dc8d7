"""``python -m ckpt_transport.testing``: what it prints and how it ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ckpt_transport.errors import TransportUnavailableError
from ckpt_transport.testing import CHECKS, LONG_CHECKS, run
from ckpt_transport.testing.__main__ import main
from ckpt_transport.transports.interface import Availability, Transport
from tests.conformance.broken import LONG_CASES, Case
from tests.conformance.broken.others import NeverOpens
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
    said = capsys.readouterr().out
    assert "late_sender" in said
    assert said.splitlines()[-1] == "1 check passed, 0 failed, 0 skipped; exit status 0"


def test_given_a_probe_that_raises_when_another_check_is_asked_for_then_both_are_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Given a transport whose probe raises, when another check is asked for, then both are in the table."""
    assert main(["tests.conformance.broken.probes:ProbeRaises", "--only", "late_sender"]) == 1
    said = capsys.readouterr().out
    assert "fails the check 'probe_is_cheap'" in said
    assert "probe() raised OSError: no such device" in said
    assert "late_sender" in said
    assert said.splitlines()[-1].endswith("1 failed, 0 skipped; exit status 1")


def test_given_a_transport_that_cannot_run_here_then_it_is_not_checked() -> None:
    with pytest.raises(TransportUnavailableError, match="no such card"):
        run(NotHere)


def unmade() -> Transport:
    """A function that makes no transport."""
    raise ValueError("no settings")


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (NeverOpens, "ranks 0, 1: no route can be opened: OSError: no such device"),
        (unmade, "ranks 0, 1: the transport cannot be made: ValueError: no settings"),
    ],
)
def test_given_a_transport_that_cannot_be_opened_then_that_is_the_finding_and_nothing_else_is_checked(
    factory: Callable[[], Transport], said: str
) -> None:
    report = run(factory, only={"late_sender", "bytes_arrive"})
    assert "late_sender" not in str(report)
    assert report.failed[-1] == "route_opens"
    assert said in report.results[-1].explanation


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tests.conformance.transports:Missing", "has nothing called Missing. Its transports: "),
        ("tests.conformance.transports:ReadTransprot", "did you mean ReadTransport?"),
        (
            "nowhere:Missing",
            "there is no module 'nowhere': install it, or run in the folder that it is in",
        ),
        ("tests.conformance.transports:one_sided", "makes no transport: give a subclass of Transport"),
        ("pigeon", "no transport is called 'pigeon'"),
    ],
)
def test_given_a_name_that_makes_no_transport_then_it_is_named_with_what_to_give(
    name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name]) == 1
    assert said in capsys.readouterr().out


def test_given_all_checks_then_long_ones_have_names_of_their_own() -> None:
    names = [check.name for check in (*CHECKS, *LONG_CHECKS)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("case", LONG_CASES, ids=lambda case: case.name)
def test_given_a_defect_past_16_bits_then_a_long_check_catches_it(case: Case) -> None:
    report = run(case.transport, only=case.found_by, checks=LONG_CHECKS)
    assert set(report.failed) == set(case.found_by), str(report)
    for result in report.results:
        assert case.found_by[result.check.name] in result.explanation
