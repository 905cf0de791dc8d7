"""The conformance kit finds what is wrong with transports of GPUs, too."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ckpt_transport.testing import run
from ckpt_transport.transports.interface import Transport
from tests.conformance.broken.cases import WRONG_BYTES
from tests.gpu import broken
from tests.gpu.test_conformance import needs_nccl

CASES: list[tuple[type[Transport], Mapping[str, str]]] = [
    (broken.ReusesSlotEarly, {"back_pressure": WRONG_BYTES, "source_may_overwrite": WRONG_BYTES}),
    (broken.ShowsAnOldCopy, {"every_span_arrives": WRONG_BYTES}),
    (broken.DoneWhenEnqueued, {"receive_is_complete": WRONG_BYTES}),
    (broken.MarksTooEarly, {"a_device_orders": WRONG_BYTES}),
    (broken.LosesTheLastByte, {"bytes_arrive": WRONG_BYTES}),
    (broken.KeepsReason, {"abort_reaches_everyone": "something went wrong"}),
]


@pytest.mark.parametrize(
    ("transport", "found_by"),
    [pytest.param(*case, id=case[0].__name__, marks=[needs_nccl] if case[0].name == "nccl" else []) for case in CASES],
)
def test_given_a_broken_transport_on_gpus_then_a_check_catches_it_by_name(
    transport: type[Transport], found_by: Mapping[str, str]
) -> None:
    report = run(transport, only=found_by, deadline=20)
    assert set(report.failed) == set(found_by), str(report)
    for result in report.results:
        assert found_by[result.check.name] in result.explanation
