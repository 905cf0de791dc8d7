"""A sink dies while a delta is staged, applied or committed: the others serve one version, and take the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from ckpt_transport import Config, ParameterServer
from ckpt_transport.errors import UpdateError
from tests import computed
from tests.fleet import SinkSpec, fleet, weights
from tests.injection import Fault
from tests.multiprocess.test_delta_sinks import some_changed
from tests.patience import SWIFT

DELTAS: dict[str, Any] = {**SWIFT, "delta": "on", "commit": "auto"}


class Case(NamedTuple):
    """A sink, a checkpoint by its seed, and what the sink serves of one."""

    sink: SinkSpec
    weights: Callable[[int], dict[str, torch.Tensor]]
    served: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


NAMED = Case(SinkSpec(settings=SWIFT), weights, dict)
COMPUTED = Case(
    SinkSpec(settings=SWIFT, make=computed.rank_of, loader=computed.loader), computed.weights_of, computed.served_of
)

pytestmark = pytest.mark.usefixtures("dead_are_swept")


@pytest.mark.parametrize(
    ("fault", "is_served"),
    [
        (Fault("run", 2), False),
        (Fault("exchange_elements", 1), False),
        (Fault("certify", 2), True),
    ],
    ids=["staged", "applied", "committed"],
)
@pytest.mark.parametrize("case", [NAMED, COMPUTED], ids=["all by elements", "a module whole"])
def test_given_a_sink_that_dies_in_a_delta_then_the_other_serves_one_version_and_takes_the_next(
    case: Case, fault: Fault, is_served: bool
) -> None:
    old = case.weights(2)
    new, newest = some_changed(old, 1), some_changed(old, 2)
    with (
        fleet(case.sink, replace(case.sink, fault=fault)) as (lives, dies),
        ParameterServer(Config.load(**DELTAS)) as server,
    ):
        both = [lives.address, dies.address]
        server.publish("old", old, both)
        if is_served:
            report = server.publish("new", new, both)
            assert report is not None
            assert list(report.lost)
        else:
            with pytest.raises(UpdateError):
                server.publish("new", new, both)
        assert dies.dies()
        state = lives.state()
        assert (state.version, state.tainted, state.served) == ("new" if is_served else "old", "", "")
        assert state.holds(case.served(new if is_served else old))
        server.publish("newest", newest, [lives.address])
        assert lives.state().holds(case.served(newest))
